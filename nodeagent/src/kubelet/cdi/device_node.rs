//! Device nodes: how a spec names them, and how missing ones are created on the host.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::Serialize;

/// Major number of NVIDIA's GPUs (`Documentation/admin-guide/devices.txt`).
const NVIDIA_MAJOR: u32 = 195;
/// Minor number of `/dev/nvidiactl`.
const CONTROL_MINOR: u32 = 255;

/// A device node of a container, as a spec names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    #[serde(rename = "type")]
    kind: char,
    major: u32,
    minor: u32,
    permissions: &'static str,
}

impl DeviceNode {
    /// A character device that the container may read and write.
    pub(crate) fn new(path: &str, major: u32, minor: u32) -> Self {
        Self {
            path: path.to_owned(),
            kind: 'c',
            major,
            minor,
            permissions: "rw",
        }
    }

    /// The driver's control device, which every client opens first.
    pub(crate) fn control() -> Self {
        Self::new("/dev/nvidiactl", NVIDIA_MAJOR, CONTROL_MINOR)
    }

    /// A GPU by its minor number.
    pub(crate) fn gpu(minor: u32) -> Self {
        Self::new(&format!("/dev/nvidia{minor}"), NVIDIA_MAJOR, minor)
    }

    /// Creates the node in the host's `/dev` if it is missing or belongs to another device. If that fails, the container
    /// still gets a node by the numbers in the spec, unless it is in a user namespace.
    pub(crate) fn create_in(&self, dev: &Path) {
        let Some(path) = self.path.strip_prefix("/dev/") else {
            return;
        };
        let (major, minor) = (self.major, self.minor);
        let path = dev.join(path);
        let device = makedev(major.into(), minor.into());
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.rdev() == device => return,
            // The major number of the capabilities may have changed when the driver was reloaded.
            Ok(_) => drop(std::fs::remove_file(&path)),
            Err(_) => {}
        }
        // The driver opens a capability to everybody who has its node: whether a container has it is what counts.
        let mode = if path.parent() == Some(dev) {
            0o666
        } else {
            0o444
        };
        let result = std::fs::create_dir_all(path.parent().unwrap_or(dev))
            .and_then(|()| {
                mknod(&path, SFlag::S_IFCHR, Mode::empty(), device).map_err(io::Error::from)
            })
            // mknod applies the umask, chmod does not.
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(mode)));
        match result {
            Ok(()) => tracing::info!(path = %path.display(), major, minor, "Created a device node"),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "Cannot create a device node");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn device_nodes_that_are_missing_or_of_another_device_are_created() {
        let dir = tempfile::tempdir().unwrap();
        let probe = dir.path().join("probe");
        // Creating nodes needs root and the right to do it.
        if mknod(&probe, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).is_err() {
            return;
        }
        let dev = dir.path().join("dev");
        let path = dev.join("nvidia-caps/nvidia-cap120");
        for major in [508, 509] {
            DeviceNode::new("/dev/nvidia-caps/nvidia-cap120", major, 120).create_in(&dev);
            let meta = std::fs::metadata(&path).unwrap();
            assert!(meta.file_type().is_char_device());
            assert_eq!(meta.rdev(), makedev(u64::from(major), 120));
        }
        // Nothing is created outside of it.
        DeviceNode::new("/etc/x", 1, 3).create_in(&dev);
        assert!(!dev.join("etc").exists());
    }
}
