//! The cluster itself: the processes of the control plane and of the one real node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Node, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    error::{AtPath, Error},
    image::{self, IMAGE},
    layout::{
        API_SERVER_PORT, BRIDGE, CGROUP, DEVICE_PLUGIN_DIR, ETCD_PORTS, KUBELET_PORT, Layout,
        NETWORK, NODE_ADDRESS, SUBNET, binaries_dir, tools_dir,
    },
    leftovers, pki,
    process::{Processes, Spec},
    wait::until,
};

/// How long a component may take to become ready.
const PATIENCE: Duration = Duration::from_mins(1);

/// A component that a scenario may stop and start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// etcd.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    Controllers,
    /// The default kube-scheduler.
    Scheduler,
    /// containerd.
    Containerd,
    /// kubelet of the real node.
    Kubelet,
}

impl Component {
    /// Name of its process.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
        }
    }
}

/// What `cluster.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of the real node.
    pub(crate) node: String,
    /// Paths outside of the state directory that were not there before.
    pub(crate) absent: Vec<PathBuf>,
}

/// A running cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Where its files are.
    pub layout: Layout,
    /// Its processes.
    pub processes: Processes,
    /// Name of the real node.
    pub node: String,
    client: Client,
}

/// What a component of the control plane is started by.
fn component(name: &str) -> Spec {
    Spec::new(name, tools_dir().join("controlplane")).arg(name)
}

impl Cluster {
    /// Brings up a control plane and the real node with these labels, and waits until the node is ready.
    pub async fn up(dir: &Path, node: &str, labels: &str) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let layout = Layout::new(dir);
        if layout.record().exists() {
            return Err(Error::AlreadyUp(layout.dir));
        }
        let foreign = Path::new(DEVICE_PLUGIN_DIR).join("kubelet.sock");
        if std::os::unix::net::UnixStream::connect(&foreign).is_ok()
            || !leftovers::cgroups(CGROUP).is_empty()
        {
            return Err(Error::ForeignKubelet(DEVICE_PLUGIN_DIR.into()));
        }
        for directory in layout.directories() {
            fs::create_dir_all(&directory).at(&directory)?;
        }
        let record = Record {
            node: node.to_owned(),
            absent: leftovers::absent(),
        };
        let file = layout.record();
        fs::write(&file, serde_json::to_vec_pretty(&record)?).at(&file)?;
        pki::make(&layout, node)?;
        let processes = Processes::new(&layout);

        processes.start(&etcd(&layout))?;
        processes.start(&api_server(&layout))?;
        processes.start(&containerd(&layout)?)?;
        let cluster = Self {
            client: client(&layout, "admin").await?,
            node: node.to_owned(),
            layout,
            processes,
        };
        cluster.api_server_answers().await?;
        cluster.start_controllers()?;
        cluster.import_image().await?;
        make_bridge()?;
        cluster
            .processes
            .start(&kubelet(&cluster.layout, node, labels)?)?;
        cluster.node_is_ready(node).await?;
        let accounts: Api<ServiceAccount> = Api::default_namespaced(cluster.client.clone());
        until("the service account default", PATIENCE, async || {
            accounts.get("default").await.ok()
        })
        .await?;
        Ok(cluster)
    }

    /// The cluster that runs in a state directory.
    pub async fn attach(dir: &Path) -> Result<Self, Error> {
        let layout = Layout::new(dir);
        let text = fs::read(layout.record()).map_err(|_| Error::NoCluster(layout.dir.clone()))?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|_| Error::NoCluster(layout.dir.clone()))?;
        Ok(Self {
            client: client(&layout, "admin").await?,
            processes: Processes::new(&layout),
            node: record.node,
            layout,
        })
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights of a kubeconfig of `pki/`.
    pub async fn client_as(&self, who: &str) -> Result<Client, Error> {
        client(&self.layout, who).await
    }

    /// Runs kubectl with all rights; its output, or its words as an error.
    pub async fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<String, Error> {
        let mut command = tokio::process::Command::from(self.kubectl_command());
        let output = command.args(args).output().await;
        let output = output.map_err(|source| Error::Spawn {
            program: tools_dir().join("controlplane"),
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy())
            .collect();
        Err(Error::Failed {
            program: format!("kubectl {}", words.join(" ")),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// kubectl with all rights, to be given its arguments.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(tools_dir().join("controlplane"));
        command
            .arg("kubectl")
            .arg("--cache-dir")
            .arg(self.layout.dir.join("kubectl"))
            .env("KUBECONFIG", self.layout.kubeconfig("admin"));
        command
    }

    /// A kubeconfig with a token of a service account, as its pod would have one: bound to its node where given.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        node: Option<&str>,
    ) -> Result<PathBuf, Error> {
        let bound_object_ref = match node {
            Some(node) => Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                uid: Api::<Node>::all(self.client()).get(node).await?.uid(),
            }),
            None => None,
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(24 * 3600),
                bound_object_ref,
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        let token = answer.status.map(|status| status.token).unwrap_or_default();
        let file = node.map_or_else(|| name.to_owned(), |node| format!("{name}-{node}"));
        pki::kubeconfig(&self.layout, &file, &json!({ "token": token }))?;
        Ok(self.layout.kubeconfig(&file))
    }

    /// Waits until kube-apiserver is ready.
    pub async fn api_server_answers(&self) -> Result<(), Error> {
        until("kube-apiserver to be ready", PATIENCE, async || {
            let request = http::Request::get("/readyz").body(vec![]).ok()?;
            self.client.request_text(request).await.ok()
        })
        .await
        .map(drop)
    }

    /// Waits until a node says that it is ready.
    pub async fn node_is_ready(&self, name: &str) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.client());
        until(&format!("node {name} to be ready"), PATIENCE, async || {
            let node = nodes.get(name).await.ok()?;
            let conditions = node.status?.conditions?;
            conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
                .then_some(())
        })
        .await
        .map_err(|error| match error {
            Error::Timeout { .. } if self.processes.running("kubelet").is_none() => {
                self.processes.died("kubelet")
            }
            other => other,
        })
    }

    fn start_controllers(&self) -> Result<(), Error> {
        let layout = &self.layout;
        let pki = layout.pki();
        self.processes.start(
            &component("kube-controller-manager")
                .arg(format!(
                    "--kubeconfig={}",
                    layout.kubeconfig("controllers").display()
                ))
                .arg(format!(
                    "--service-account-private-key-file={}",
                    pki.join("sa.key").display()
                ))
                .arg(format!("--root-ca-file={}", pki.join("ca.crt").display()))
                .args([
                    "--use-service-account-credentials",
                    "--leader-elect=false",
                    "--secure-port=0",
                ])
                .args([
                    "--concurrent-deployment-syncs=5",
                    "--kube-api-qps=200",
                    "--kube-api-burst=400",
                ]),
        )?;
        self.processes.start(
            &component("kube-scheduler")
                .arg(format!(
                    "--kubeconfig={}",
                    layout.kubeconfig("scheduler").display()
                ))
                .args(["--leader-elect=false", "--secure-port=0"]),
        )?;
        Ok(())
    }

    async fn import_image(&self) -> Result<(), Error> {
        let archive = self.layout.images().join("busybox.tar");
        image::write(&archive, &[binaries_dir().join("tessera-probe")])?;
        let socket = self.layout.containerd_socket();
        let mut last = String::new();
        let imported = until("containerd to import the image", PATIENCE, async || {
            let mut command = tokio::process::Command::new(tools_dir().join("ctr"));
            command.arg("--address").arg(&socket);
            command.args(["--namespace", "k8s.io", "images", "import"]);
            let output = command.arg(&archive).output().await.ok()?;
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(())
        })
        .await;
        imported.map_err(|_| Error::Failed {
            program: "ctr images import".to_owned(),
            status: "error".to_owned(),
            stderr: last,
        })
    }
}

/// The bridge that the CNI plugin takes for the pods, early: kubelet's address is on it.
fn make_bridge() -> Result<(), Error> {
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

async fn client(layout: &Layout, who: &str) -> Result<Client, Error> {
    let kubeconfig = Kubeconfig::read_from(layout.kubeconfig(who))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn etcd(layout: &Layout) -> Spec {
    let [clients, peers] = ETCD_PORTS.map(|port| format!("http://127.0.0.1:{port}"));
    component("etcd")
        .arg(format!("--data-dir={}", layout.etcd().display()))
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"))
        .args(["--unsafe-no-fsync", "--logger=zap", "--log-level=warn"])
}

fn api_server(layout: &Layout) -> Spec {
    let pki = |file: &str| layout.pki().join(file).display().to_string();
    component("kube-apiserver")
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ETCD_PORTS[0]))
        .arg(format!("--secure-port={API_SERVER_PORT}"))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        .arg(format!("--tls-cert-file={}", pki("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", pki("apiserver.key")))
        .arg(format!("--client-ca-file={}", pki("ca.crt")))
        .arg(format!("--service-account-key-file={}", pki("sa.pub")))
        .arg(format!(
            "--service-account-signing-key-file={}",
            pki("sa.key")
        ))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .args([
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
        ])
        .arg(format!("--kubelet-client-certificate={}", pki("admin.crt")))
        .arg(format!("--kubelet-client-key={}", pki("admin.key")))
        .args(["--allow-privileged=true", "--endpoint-reconciler-type=none"])
        .arg("--kubelet-preferred-address-types=InternalIP")
}

fn containerd(layout: &Layout) -> Result<Spec, Error> {
    let dir = |path: PathBuf| path.display().to_string();
    let network = json!({
        "cniVersion": "1.0.0", "name": NETWORK,
        "plugins": [
            { "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": SUBNET }]],
                        "routes": [{ "dst": "0.0.0.0/0" }], "dataDir": layout.ipam() } },
            { "type": "loopback" }],
    });
    let file = layout.cni().join("10-bridge.conflist");
    fs::write(&file, network.to_string()).at(&file)?;
    let (root, state, socket) = (
        dir(layout.containerd()),
        dir(layout.containerd_state()),
        dir(layout.containerd_socket()),
    );
    let (cdi, cni, opt) = (
        dir(layout.cdi()),
        dir(layout.cni()),
        dir(layout.dir.join("opt")),
    );
    // Without restrict_oom_score_adj no sandbox starts where CAP_SYS_RESOURCE is missing.
    let config = format!(
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
    );
    let file = layout.config().join("containerd.toml");
    fs::write(&file, config).at(&file)?;
    let tools = tools_dir();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display());
    Ok(Spec::new("containerd", tools.join("containerd"))
        .arg("--config")
        .arg(dir(file))
        .env("PATH", path))
}

fn kubelet(layout: &Layout, node: &str, labels: &str) -> Result<Spec, Error> {
    let pki = |file: &str| layout.pki().join(file);
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS, "port": KUBELET_PORT, "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": false },
            "x509": { "clientCAFile": pki("ca.crt") } },
        "authorization": { "mode": "AlwaysAllow" },
        "tlsCertFile": pki("kubelet.crt"), "tlsPrivateKeyFile": pki("kubelet.key"),
        "cgroupDriver": "cgroupfs", "failSwapOn": false, "registerNode": true,
        "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket().display()),
        "podLogsDir": layout.log().join("pods"),
        "resolvConf": "/etc/resolv.conf", "clusterDNS": ["10.96.0.10"],
        "evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s", "maxPods": 200,
    });
    let file = layout.config().join("kubelet.json");
    fs::write(&file, serde_json::to_vec_pretty(&config)?).at(&file)?;
    Ok(component("kubelet")
        .arg(format!("--config={}", file.display()))
        .arg(format!(
            "--kubeconfig={}",
            layout.kubeconfig("kubelet").display()
        ))
        .arg(format!("--root-dir={}", layout.kubelet().display()))
        .arg(format!("--hostname-override={node}"))
        .arg(format!("--node-labels={labels}"))
        .arg(format!("--node-ip={NODE_ADDRESS}")))
}
