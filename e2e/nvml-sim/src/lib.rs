//! A simulated `libnvidia-ml.so.1`: NVML's C ABI over GPUs kept in a state directory.
//!
//! As a cdylib it is loaded in the place of the driver's library; as an rlib it lets tests make
//! GPUs, see the truth behind the ABI, and order faults.

pub mod code;
pub mod event;
mod event_set;
pub mod fault;
mod ffi;
pub mod gpu;
pub mod model;
mod proc;
pub mod process;
pub mod state;
pub mod store;

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    gpu::{Gpu, RECOVER_NOTHING, Remapped},
    state::State,
    store::Store,
};

/// A GPU to make.
#[derive(Clone, Debug)]
pub struct GpuSpec {
    /// Key, short key or NVML name of its model: `a100-80gb`.
    pub model: String,
    /// Whether MIG mode is on.
    pub mig: bool,
    /// Whether the die's halves are numbered the other way round.
    pub mirrored: bool,
}

/// Makes the GPUs of a node in a state directory. The same seed gives the same UUIDs.
pub fn provision(dir: &Path, seed: &str, gpus: &[GpuSpec]) -> io::Result<()> {
    use sha1::{Digest, Sha1};
    let gpus = gpus
        .iter()
        .zip(0u32..)
        .map(|(spec, index)| {
            let model = model::model(&spec.model).ok_or_else(|| {
                io::Error::other(format!(
                    "no model {:?}; domain/models.json lists them",
                    spec.model
                ))
            })?;
            let hash = Sha1::digest(format!("{seed}/{index}"));
            let mut pdi = [0; 8];
            pdi.copy_from_slice(&hash[..8]);
            Ok(Gpu {
                model: model.key.clone(),
                chip: u16::try_from(model.pci_device_id >> 16).unwrap_or_default(),
                pdi: u64::from_le_bytes(pdi),
                minor: index,
                mirrored: spec.mirrored,
                mig: spec.mig,
                pending: spec.mig,
                instances: vec![],
                serial: 0,
                lost: false,
                recovery_action: RECOVER_NOTHING,
                remapped: Remapped::default(),
            })
        })
        .collect::<io::Result<_>>()?;
    Store::new(dir).provision(&State {
        gpus,
        ..State::default()
    })
}

/// The cdylib that cargo built beside the running test.
pub fn built_library() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let deps = own.parent().unwrap_or(Path::new("."));
    let places = [
        deps.join("libnvml_sim.so"),
        deps.with_file_name("libnvml_sim.so"),
    ];
    let built = places.into_iter().find(|path| path.exists());
    built.ok_or_else(|| io::Error::other(format!("no libnvml_sim.so beside {}", own.display())))
}

/// Reboots the node: instances and processes are gone, Hopper and later forget MIG mode.
pub fn reboot(dir: &Path) -> io::Result<()> {
    Store::new(dir).with(|state| state.gpus.iter_mut().for_each(Gpu::reboot))
}

/// Resets the GPU of that index or UUID as nvidia-smi does: nobody may have it open.
pub fn reset(dir: &Path, gpu: &str) -> io::Result<()> {
    let store = Store::new(dir);
    store.with(|state| {
        let at = state.find(gpu)?;
        let gpu = state.gpu(at)?;
        if gpu.lost {
            let text = format!("GPU {at} is lost: reboot the node to recover it");
            return Err(io::Error::other(text));
        }
        let sessions = store.sessions();
        let on_devices = store.device_processes();
        let processes = on_devices.iter().filter(|process| process.gpu == at).count();
        if sessions + processes > 0 {
            let text = format!(
                "GPU {at} is in use by another client: {sessions} NVML session{}, {processes} process{}",
                if sessions == 1 { "" } else { "s" },
                if processes == 1 { "" } else { "es" },
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        gpu.reset();
        Ok(())
    })?
}
