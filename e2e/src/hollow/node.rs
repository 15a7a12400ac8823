//! A hollow node: its directory and its device manager.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use kube::Client;
use tokio::sync::Notify;

use super::devices::Devices;
use crate::reboot::remove_sockets;

/// A hollow node.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) client: Client,
    devices: Mutex<Devices>,
    /// Notified when the devices of a plugin have changed.
    pub(super) changed: Notify,
}

impl Node {
    /// A node with its directory; takes over the allocations of its checkpoint.
    pub(super) fn new(name: &str, dir: PathBuf, client: Client) -> io::Result<Self> {
        let node = Self {
            name: name.to_owned(),
            dir,
            client,
            devices: Mutex::default(),
            changed: Notify::new(),
        };
        for directory in [
            node.device_plugins(),
            node.cdi(),
            node.dir.join("pod-resources"),
        ] {
            std::fs::create_dir_all(directory)?;
        }
        if let Ok(bytes) = std::fs::read(node.checkpoint()) {
            node.with_devices(|devices| devices.restore(&bytes))?;
            node.changed.notify_one();
        }
        // As kubelet does: this tells a device plugin to register again.
        remove_sockets(&node.device_plugins())?;
        Ok(node)
    }

    pub(super) fn device_plugins(&self) -> PathBuf {
        self.dir.join("device-plugins")
    }

    pub(super) fn kubelet_socket(&self) -> PathBuf {
        self.device_plugins().join("kubelet.sock")
    }

    pub(super) fn pod_resources_socket(&self) -> PathBuf {
        self.dir.join("pod-resources/kubelet.sock")
    }

    pub(super) fn cdi(&self) -> PathBuf {
        self.dir.join("cdi")
    }

    /// The file of what a container was created with; it exists while the container does.
    pub(super) fn container(&self, uid: &str, name: &str) -> PathBuf {
        let containers = self.dir.join("containers");
        containers.join(uid).join(format!("{name}.json"))
    }

    fn checkpoint(&self) -> PathBuf {
        self.device_plugins().join("kubelet_internal_checkpoint")
    }

    /// Reads or changes the device manager; [`Self::save`] writes it to disk.
    pub(super) fn with_devices<T>(&self, work: impl FnOnce(&mut Devices) -> T) -> T {
        work(&mut self.devices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes `kubelet_internal_checkpoint`.
    pub(super) fn save(&self) {
        let fresh = self.checkpoint().with_extension("new");
        // Under the lock, so that no older one is written last.
        let written = self.with_devices(|devices| {
            std::fs::write(&fresh, devices.checkpoint())?;
            std::fs::rename(&fresh, self.checkpoint())
        });
        if let Err(error) = written {
            tracing::error!(node = self.name, %error, "Cannot write the checkpoint");
        }
    }
}
