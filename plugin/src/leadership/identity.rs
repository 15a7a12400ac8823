//! Who holds the Lease: a process, and the listening socket that only one living process can have.

use std::{net::SocketAddr, path::Path};

/// Name of a process of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Boot of the machine, network namespace and listening address: of the processes with the same ones all but
    /// the one that listens are gone, or have begun to end.
    place: String,
    /// What tells the processes of a place apart.
    process: String,
}

impl Identity {
    /// The identity of this process, which listens at the address already.
    pub(crate) fn of_listener(address: SocketAddr) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id");
        let network = std::fs::read_link(Path::new("/proc/self/ns/net")).unwrap_or_default();
        let hostname = read("/proc/sys/kernel/hostname");
        let started = k8s_openapi::jiff::Timestamp::now().as_nanosecond();
        Self {
            place: format!("{}/{}/{address}", boot.trim(), network.display()),
            process: format!("{}/{}-{started}", hostname.trim(), std::process::id()),
        }
    }

    /// Whether the holder is an earlier process in the place of this one.
    pub(crate) fn is_predecessor(&self, holder: &str) -> bool {
        let place = holder.split_once('@').map(|(_, place)| place);
        place == Some(self.place.as_str()) && holder != self.to_string()
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.process, self.place)
    }
}

#[cfg(test)]
impl Identity {
    /// A process in a place, for tests.
    pub(crate) fn new(process: &str, place: &str) -> Self {
        Self {
            place: place.to_owned(),
            process: process.to_owned(),
        }
    }
}
