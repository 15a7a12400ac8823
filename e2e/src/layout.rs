//! Where everything of a cluster lies: one state directory, the tools, and the few paths that kubelet fixes.

use std::path::{Path, PathBuf};

/// kubelet's device plugin directory: a constant in kubelet, whatever its `--root-dir` is.
pub const DEVICE_PLUGIN_DIR: &str = "/var/lib/kubelet/device-plugins";

/// The bridge of the pod network.
pub(crate) const BRIDGE: &str = "tsr0";
/// The machine's address on that bridge: what kubelet serves on, out of reach for other machines.
pub(crate) const NODE_ADDRESS: &str = "10.244.0.1";
/// The pod network.
pub(crate) const SUBNET: &str = "10.244.0.0/24";
/// Name of the pod network.
pub(crate) const NETWORK: &str = "tessera-e2e";
/// The cgroup, in every hierarchy, that holds kubelet's pods.
pub(crate) const CGROUP: &str = "kubepods";

/// Port of kube-apiserver on 127.0.0.1. All ports are fixed: one machine has one such cluster at a time.
pub const API_SERVER_PORT: u16 = 19643;
/// Ports of etcd: clients, peers.
pub(crate) const ETCD_PORTS: [u16; 2] = [19379, 19380];
/// Port of kubelet.
pub(crate) const KUBELET_PORT: u16 = 19250;
/// Port of the webhook; `e2e/manifests` names it too.
pub const WEBHOOK_PORT: u16 = 19443;
/// Port of the scheduler plugin.
pub const PLUGIN_PORT: u16 = 19888;
/// First of the ports of `/metrics`: webhook, plugin, then the agents.
pub const ADMIN_PORT: u16 = 19080;

/// The state directory used when the caller names none: `$TESSERA_E2E_DIR`, else `/run/tessera-e2e`.
pub fn default_dir() -> PathBuf {
    std::env::var_os("TESSERA_E2E_DIR").map_or_else(|| "/run/tessera-e2e".into(), PathBuf::from)
}

/// The folder of the binaries that cargo built: where this one lies.
pub fn binaries_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("."));
    // A test lies one folder deeper.
    match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().unwrap_or(dir).into(),
        _ => dir.into(),
    }
}

/// The folder of the binaries that `e2e/install.sh` made: `$TESSERA_E2E_TOOLS`, else `target/e2e-tools`.
pub fn tools_dir() -> PathBuf {
    std::env::var_os("TESSERA_E2E_TOOLS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e-tools"),
        PathBuf::from,
    )
}

/// The paths inside a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The state directory itself, absolute.
    pub dir: PathBuf,
}

impl Layout {
    /// The layout of a state directory. The directory need not exist.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: std::path::absolute(dir).unwrap_or_else(|_| dir.into()),
        }
    }

    /// What `attach` reads: ports, node name, what to put back on `down`.
    pub fn record(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// Keys, certificates and kubeconfigs.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// A kubeconfig by the name of who uses it: `admin`, `kubelet`, ….
    pub fn kubeconfig(&self, who: &str) -> PathBuf {
        self.pki().join(format!("{who}.conf"))
    }

    /// Configuration files of the components.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// Logs, one file a process; and the pods' logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// One file a process that was started: its id, its start time, and how to start it again.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// etcd's data.
    pub fn etcd(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    /// containerd's root.
    pub fn containerd(&self) -> PathBuf {
        self.dir.join("containerd")
    }

    /// containerd's state: bundles, root filesystems, network namespaces.
    pub fn containerd_state(&self) -> PathBuf {
        self.dir.join("containerd-state")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// CNI configuration.
    pub fn cni(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// Address leases of the pod network.
    pub fn ipam(&self) -> PathBuf {
        self.dir.join("ipam")
    }

    /// CDI specifications, the only folder that containerd reads them from.
    pub fn cdi(&self) -> PathBuf {
        self.dir.join("cdi")
    }

    /// kubelet's root directory.
    pub fn kubelet(&self) -> PathBuf {
        self.dir.join("kubelet")
    }

    /// Image archives.
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// State of the simulated GPUs of a node.
    pub fn gpus(&self, node: &str) -> PathBuf {
        self.dir.join("gpus").join(node)
    }

    /// Journal and `HAMi`-core directory of a node's agent.
    pub fn agent(&self, node: &str) -> PathBuf {
        self.dir.join("agents").join(node)
    }

    /// How far the daemons' wall clock is moved, where it can be.
    pub fn clock(&self) -> PathBuf {
        self.dir.join("clock")
    }

    /// Files of the hollow nodes, a folder each.
    pub fn hollow(&self) -> PathBuf {
        self.dir.join("hollow")
    }

    /// Every directory that must be there before the first process starts.
    pub(crate) fn directories(&self) -> [PathBuf; 12] {
        [
            self.pki(),
            self.config(),
            self.log(),
            self.run(),
            self.etcd(),
            self.containerd(),
            self.containerd_state(),
            self.cni(),
            self.cdi(),
            self.kubelet(),
            self.images(),
            self.hollow(),
        ]
    }
}
