//! The edits of a container with software shares: the environment and mounts that `HAMi`-core expects.

use std::path::Path;

use domain::claim::Share;

use crate::kubelet::{
    cdi::{
        device_node::DeviceNode,
        driver::DriverProc,
        edits::{Edits, mount},
        error::CdiError,
    },
    id_holders::PreparedContainer,
};

/// The edits for shares with the minor numbers of their GPUs. `hook` is the directory of `HAMi`-core on the host; the
/// container gets a directory of its own there.
pub(crate) fn edits(
    driver: &DriverProc,
    hook: &Path,
    container: &PreparedContainer,
    shares: &[(&Share, u32)],
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
    let own = hook
        .join("vgpu/containers")
        .join(format!("{}_{}", container.uid, container.container));
    std::fs::create_dir_all(&own).map_err(|source| CdiError::Write {
        path: own.clone(),
        source,
    })?;
    edits.mounts.push(mount(&own, &vgpu, "rw"));
    // HAMi installs the library and the file that preloads it; without them there is nothing to mount.
    for (host, container) in [
        (hook.join("vgpu/libvgpu.so"), format!("{vgpu}/libvgpu.so")),
        (
            hook.join("vgpu/ld.so.preload"),
            "/etc/ld.so.preload".to_owned(),
        ),
    ] {
        if host.exists() {
            edits.mounts.push(mount(&host, &container, "ro"));
        }
    }
    Ok(edits)
}
