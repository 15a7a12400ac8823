//! What the calling process may see and change: device nodes limit its view, as in a container, and changes need root.

use std::path::{Path, PathBuf};

use crate::{
    code::{Code, NO_PERMISSION},
    gpu::Gpu,
    proc::{ci_minor, gi_minor},
};

/// Where device nodes restrict what is seen, as in a container; `None`: all is seen.
pub(super) fn device_nodes() -> Option<PathBuf> {
    std::env::var_os("NVML_SIM_DEV").map(PathBuf::from)
}

pub(super) fn sees_gpu(dev: Option<&Path>, gpu: &Gpu) -> bool {
    dev.is_none_or(|dev| dev.join(format!("nvidia{}", gpu.minor)).exists())
}

pub(super) fn sees_mig(dev: Option<&Path>, gpu: &Gpu, gi: u32, ci: u32) -> bool {
    let cap = |minor: u32| {
        dev.is_none_or(|dev| dev.join(format!("nvidia-caps/nvidia-cap{minor}")).exists())
    };
    dev.is_none() || cap(2) || (cap(gi_minor(gpu.minor, gi)) && cap(ci_minor(gpu.minor, gi, ci)))
}

/// Changes need root and the whole machine's view, as the driver wants `CAP_SYS_ADMIN`.
pub(super) fn privileged() -> Result<(), Code> {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if root && device_nodes().is_none() {
        Ok(())
    } else {
        Err(NO_PERMISSION)
    }
}
