//! What can go wrong with the test cluster.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A failure of the test cluster; what it names is where to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read, written or removed.
    #[error("{path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// A program that should have done its work ended with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program and its first arguments.
        program: String,
        /// Its exit status in words.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A process ended when it should have been running.
    #[error("{name} exited by itself; end of {log}:\n{tail}")]
    Died {
        /// Name of the process in the state directory.
        name: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("timed out after {} s waiting for {what}", .waited.as_secs())]
    Timeout {
        /// What was waited for, with the last answer where there was one.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// No process of this name was ever started in this state directory.
    #[error("no process named {0} in this cluster")]
    Unknown(String),
    /// The state directory holds a cluster that runs.
    #[error("a cluster is already running in {0}; take it down with tessera-e2e down")]
    AlreadyUp(PathBuf),
    /// Another kubelet answers in the device plugin directory.
    #[error("another kubelet serves {0}: this machine is already a node of a cluster")]
    ForeignKubelet(PathBuf),
    /// A program is not there.
    #[error("{0} is missing; run make build")]
    NotInstalled(PathBuf),
    /// The state directory holds no cluster, or the record of it cannot be read.
    #[error("no cluster in {0}")]
    NoCluster(PathBuf),
    /// Only root may start a kubelet.
    #[error("the test cluster starts a kubelet and containerd: run it as root")]
    NotRoot,
    /// A certificate could not be made.
    #[error("certificate")]
    Certificate(#[from] rcgen::Error),
    /// A kubeconfig could not be used.
    #[error("kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server answered with an error.
    #[error("API server")]
    Api(#[from] Box<kube::Error>),
    /// A record could not be written or read as JSON.
    #[error("JSON")]
    Json(#[from] serde_json::Error),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Names the file in an I/O error.
pub(crate) trait AtPath<T> {
    /// The same result, with the path in the error.
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File {
            path: path.as_ref().into(),
            source,
        })
    }
}
