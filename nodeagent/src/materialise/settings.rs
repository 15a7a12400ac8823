//! The settings of the NVML thread.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use domain::config::FilterDevices;

use crate::gpus::health::IgnoredFaults;

/// The settings of the NVML thread.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of `libnvidia-ml.so.1`; `None`: the loader finds it.
    pub library: Option<OsString>,
    /// File of the journal.
    pub journal: PathBuf,
    /// How long an idle instance is kept for the next pod.
    pub idle_ttl: Duration,
    /// How many idle instances are kept on the node.
    pub idle_limit: usize,
    /// GPUs that the agent must not touch.
    pub filter: FilterDevices,
    /// MiB of GPUs whose memory NVML cannot report; `None`: they are only given whole.
    pub memory_mib: Option<u64>,
    /// `/sys` of the host.
    pub sysfs: PathBuf,
    /// Faults that have no consequence.
    pub ignored_faults: IgnoredFaults,
    /// Program and arguments that reset a GPU, with `{uuid}` for its UUID; empty: no GPU is reset.
    pub reset_command: Vec<String>,
    /// `/proc` of the host.
    pub proc: PathBuf,
}
