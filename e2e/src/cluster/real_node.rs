//! The one real node: containerd, the pod network, kubelet.

use std::{fs, path::PathBuf, process::Command};

use serde_json::json;

use super::control_plane::component;
use crate::{
    error::{AtPath, Error},
    image::IMAGE,
    machine::{BRIDGE, KUBELET_PORT, NETWORK, NODE_ADDRESS, SUBNET},
    processes::Spec,
    programs::tools_dir,
    state_dir::StateDir,
};

/// Makes the bridge of the pod network. The CNI plugin would make it with the first pod; kubelet's address is on it.
pub(super) fn make_bridge() -> Result<(), Error> {
    let address = format!("{NODE_ADDRESS}/24");
    for args in [
        ["link", "add", BRIDGE, "type", "bridge"].as_slice(),
        &["address", "add", &address, "dev", BRIDGE],
        &["link", "set", BRIDGE, "up"],
    ] {
        let output = Command::new("ip").args(args).output();
        let output = output.map_err(|source| Error::Spawn {
            program: "ip".into(),
            source,
        })?;
        if !output.status.success() {
            return Err(Error::Failed {
                program: format!("ip {}", args.join(" ")),
                status: output.status.to_string(),
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
    }
    Ok(())
}

/// Writes the configuration of containerd and of the pod network.
pub(super) fn containerd(state_dir: &StateDir) -> Result<Spec, Error> {
    let network = json!({
        "cniVersion": "1.0.0", "name": NETWORK,
        "plugins": [
            { "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": SUBNET }]],
                        "routes": [{ "dst": "0.0.0.0/0" }], "dataDir": state_dir.ipam() } },
            { "type": "loopback" }],
    });
    let file = state_dir.cni().join("10-bridge.conflist");
    fs::write(&file, network.to_string()).at(&file)?;
    let file = state_dir.config().join("containerd.toml");
    fs::write(&file, containerd_config(state_dir)).at(&file)?;
    let tools = tools_dir();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display());
    Ok(Spec::new("containerd", tools.join("containerd"))
        .arg("--config")
        .arg(file.display().to_string())
        .env("PATH", path))
}

fn containerd_config(state_dir: &StateDir) -> String {
    let text = |path: PathBuf| path.display().to_string();
    let (root, state) = (
        text(state_dir.containerd()),
        text(state_dir.containerd_state()),
    );
    let (socket, cdi) = (text(state_dir.containerd_socket()), text(state_dir.cdi()));
    let (cni, opt) = (text(state_dir.cni()), text(state_dir.dir.join("opt")));
    // Without restrict_oom_score_adj no sandbox starts where CAP_SYS_RESOURCE is missing.
    format!(
        r#"version = 3
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
enable_cdi = true
cdi_spec_dirs = ["{cdi}"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{cni}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "/usr/sbin/runc"
"#
    )
}

pub(super) fn kubelet(state_dir: &StateDir, node: &str, labels: &str) -> Result<Spec, Error> {
    let pki = |file: &str| state_dir.pki().join(file);
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS, "port": KUBELET_PORT, "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": false },
            "x509": { "clientCAFile": pki("ca.crt") } },
        "authorization": { "mode": "AlwaysAllow" },
        "tlsCertFile": pki("kubelet.crt"), "tlsPrivateKeyFile": pki("kubelet.key"),
        "cgroupDriver": "cgroupfs", "failSwapOn": false, "registerNode": true,
        "containerRuntimeEndpoint": format!("unix://{}", state_dir.containerd_socket().display()),
        "podLogsDir": state_dir.log().join("pods"),
        "resolvConf": "/etc/resolv.conf", "clusterDNS": ["10.96.0.10"],
        "evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s", "maxPods": 200,
    });
    let file = state_dir.config().join("kubelet.json");
    fs::write(&file, serde_json::to_vec_pretty(&config)?).at(&file)?;
    Ok(component("kubelet")
        .arg(format!("--config={}", file.display()))
        .arg(format!(
            "--kubeconfig={}",
            state_dir.kubeconfig("kubelet").display()
        ))
        .arg(format!("--root-dir={}", state_dir.kubelet().display()))
        .arg(format!("--hostname-override={node}"))
        .arg(format!("--node-labels={labels}"))
        .arg(format!("--node-ip={NODE_ADDRESS}")))
}
