//! Bringing up a cluster.

use std::{fs, os::unix::net::UnixStream, path::Path};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use super::{
    Cluster, READY_TIMEOUT,
    control_plane::{api_server, controllers, etcd, scheduler},
    real_node::{containerd, kubelet, make_bridge},
};
use crate::{
    client::client,
    error::{AtPath, Error},
    image, leftovers,
    machine::{CGROUP, DEVICE_PLUGIN_DIR},
    pki,
    processes::Processes,
    programs::{binaries_dir, tools_dir},
    record::Record,
    state_dir::StateDir,
    wait::until,
};

impl Cluster {
    /// Brings up a control plane and the real node with these labels, and waits until the node is ready.
    pub async fn up(dir: &Path, node: &str, labels: &str) -> Result<Self, Error> {
        let state_dir = StateDir::new(dir);
        check_machine(&state_dir)?;
        for directory in state_dir.directories() {
            fs::create_dir_all(&directory).at(&directory)?;
        }
        let record = Record {
            node: node.to_owned(),
            absent: leftovers::absent(),
        };
        let file = state_dir.record();
        fs::write(&file, serde_json::to_vec_pretty(&record)?).at(&file)?;
        pki::make(&state_dir, node)?;
        let processes = Processes::new(&state_dir);

        processes.start(&etcd(&state_dir))?;
        processes.start(&api_server(&state_dir))?;
        processes.start(&containerd(&state_dir)?)?;
        let cluster = Self {
            client: client(&state_dir, "admin").await?,
            node: node.to_owned(),
            state_dir,
            processes,
        };
        let (state_dir, processes) = (&cluster.state_dir, &cluster.processes);
        cluster.api_server_is_ready().await?;
        processes.start(&controllers(state_dir))?;
        processes.start(&scheduler(state_dir))?;
        import_image(state_dir).await?;
        make_bridge()?;
        processes.start(&kubelet(state_dir, node, labels)?)?;
        cluster.node_is_ready(node).await?;
        // Without it the API server refuses every pod.
        let accounts: Api<ServiceAccount> = Api::default_namespaced(cluster.client());
        until("the service account default", READY_TIMEOUT, async || {
            accounts.get("default").await.ok()
        })
        .await?;
        Ok(cluster)
    }
}

/// Refuses a machine that has a cluster or a kubelet already.
fn check_machine(state_dir: &StateDir) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if state_dir.record().exists() {
        return Err(Error::AlreadyUp(state_dir.dir.clone()));
    }
    let kubelet = Path::new(DEVICE_PLUGIN_DIR).join("kubelet.sock");
    if UnixStream::connect(kubelet).is_ok() || !leftovers::cgroups(CGROUP).is_empty() {
        return Err(Error::ForeignKubelet(DEVICE_PLUGIN_DIR.into()));
    }
    Ok(())
}

async fn import_image(state_dir: &StateDir) -> Result<(), Error> {
    let archive = state_dir.images().join("busybox.tar");
    image::write(&archive, &[binaries_dir().join("tessera-probe")])?;
    let socket = state_dir.containerd_socket();
    let mut last = String::new();
    let imported = until(
        "containerd to import the image",
        READY_TIMEOUT,
        async || {
            let mut command = tokio::process::Command::new(tools_dir().join("ctr"));
            command.arg("--address").arg(&socket);
            command.args(["--namespace", "k8s.io", "images", "import"]);
            let output = command.arg(&archive).output().await.ok()?;
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(())
        },
    )
    .await;
    imported.map_err(|_| Error::Failed {
        program: "ctr images import".to_owned(),
        status: "error".to_owned(),
        stderr: last,
    })
}
