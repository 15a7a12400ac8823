//! Directories with simulated GPUs, and what is on them behind NVML.

use std::{collections::BTreeMap, fs, path::Path};

use nvml_sim::{GpuSpec, provision, state::State, store::Store};

/// Where somebody else's instance is: GPU and first slice.
pub(crate) const FOREIGN: (usize, u8) = (1, 0);

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn state(dir: &Path) -> State {
    Store::new(dir).snapshot().unwrap()
}

/// Instances by GPU and first slice: id, a number that is never reused, and number of compute instances.
pub(crate) type Instances = BTreeMap<(usize, u8), (u32, u32, usize)>;

/// The instances behind NVML.
pub(crate) fn instances(dir: &Path) -> Instances {
    let state = state(dir);
    let gpus = state.gpus.iter().enumerate();
    gpus.flat_map(|(index, gpu)| gpu.instances.iter().map(move |i| (index, i)))
        .map(|(index, i)| ((index, i.start), (i.id, i.serial, i.compute.len())))
        .collect()
}

/// Provisions two GPUs in a directory. Returns their UUIDs.
pub(crate) fn two_gpus(dir: &Path, model: &str, mig: bool) -> [String; 2] {
    fs::create_dir_all(dir).unwrap();
    let spec = GpuSpec {
        model: model.to_owned(),
        mig,
        mirrored: false,
    };
    provision(dir, "crash", &[spec.clone(), spec]).unwrap();
    [0, 1].map(|index| state(dir).gpus[index].uuid())
}
