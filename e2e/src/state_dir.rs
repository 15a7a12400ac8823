//! The state directory: where everything of a cluster lies, but for the few paths that kubelet fixes.

use std::path::{Path, PathBuf};

/// The state directory used when the caller names none: `$TESSERA_E2E_DIR`, else `/run/tessera-e2e`.
pub fn default_dir() -> PathBuf {
    std::env::var_os("TESSERA_E2E_DIR").map_or_else(|| "/run/tessera-e2e".into(), PathBuf::from)
}

/// A state directory, and the paths in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    /// The state directory itself, absolute.
    pub dir: PathBuf,
}

impl StateDir {
    /// The state directory at this path. It need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: std::path::absolute(dir).unwrap_or_else(|_| dir.into()),
        }
    }

    /// What `attach` reads: the node's name, and what to put back on `down`.
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

    /// Logs, one file per process; and the pods' logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// One file per process that was started: its id, its start time, and how to start it again.
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

    /// Offset of the daemons' wall clock, where it can be moved.
    pub fn clock(&self) -> PathBuf {
        self.dir.join("clock")
    }

    /// Files of the hollow nodes, one folder per node.
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
