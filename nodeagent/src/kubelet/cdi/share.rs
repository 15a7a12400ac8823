//! The edits of a container with software shares: the environment and mounts that `HAMi`-core expects.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use domain::claim::Share;

use crate::kubelet::{
    cdi::{
        device_node::DeviceNode,
        driver::DriverProc,
        edits::{Edits, memory_mount, mount},
        error::CdiError,
    },
    id_holders::PreparedContainer,
};

/// Size of the container's own directory: `HAMi`-core's region for the processes of a container has about 1 MiB per GPU.
const OWN_DIRECTORY_MIB: u32 = 64;
/// Where `HAMi`-core takes the lock that all containers of a node share.
const LOCK_DIRECTORY: &str = "/tmp/vgpulock";

/// Whether the limits of a container are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limiter {
    Preloaded,
    /// The container's own variable `CUDA_DISABLE_CONTROL` is true: as in `HAMi`, the library is there and not preloaded.
    Disabled,
}

/// The edits for shares with the minor numbers of their GPUs. `hook` is the directory of `HAMi`-core on the host; the
/// container gets a directory of its own in its place: in memory and bounded, so that it fits any user, cannot fill the
/// host, and goes with the container.
pub(crate) fn edits(
    driver: &DriverProc,
    hook: &Path,
    container: &PreparedContainer,
    shares: &[(&Share, u32)],
    limiter: Limiter,
) -> Result<Edits, CdiError> {
    let mut edits = Edits::new(driver, shares.iter().map(|(share, _)| share.gpu.as_str()));
    let vgpu = format!("{}/vgpu", hook.display());
    edits.env.push(format!(
        "CUDA_DEVICE_MEMORY_SHARED_CACHE={vgpu}/{}.cache",
        container.uid
    ));
    for (index, (share, minor)) in shares.iter().enumerate() {
        edits.add_node(DeviceNode::gpu(*minor));
        // A GPU of unknown size is given whole: there is no limit to enforce.
        if share.mem > 0 {
            let limit = format!("CUDA_DEVICE_MEMORY_LIMIT_{index}={}m", share.mem);
            edits.env.push(limit);
        }
    }
    // HAMi-core knows one limit of compute for all devices of a container.
    if let Some((share, _)) = shares.first() {
        edits
            .env
            .push(format!("CUDA_DEVICE_SM_LIMIT={}", share.cores));
    }
    edits.mounts.push(memory_mount(&vgpu, OWN_DIRECTORY_MIB));
    let lock = hook.join("vgpu/lock");
    create_shared(&lock).map_err(|source| CdiError::Write {
        path: lock.clone(),
        source,
    })?;
    edits.mounts.push(mount(&lock, LOCK_DIRECTORY, "rw"));
    // HAMi installs the library and the file that preloads it; without them there is nothing to mount.
    for (host, container) in [
        (hook.join("vgpu/libvgpu.so"), format!("{vgpu}/libvgpu.so")),
        (
            hook.join("vgpu/ld.so.preload"),
            "/etc/ld.so.preload".to_owned(),
        ),
    ] {
        let is_wanted = limiter == Limiter::Preloaded || container != "/etc/ld.so.preload";
        if is_wanted && host.exists() {
            edits.mounts.push(mount(&host, &container, "ro"));
        }
    }
    Ok(edits)
}

/// Makes a directory that every user may write, whatever this process's umask is.
fn create_shared(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777))
}
