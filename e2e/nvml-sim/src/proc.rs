//! The driver's part of `/proc`: majors, and a file for each capability (kernel: `nv-caps.c`).

use std::{fs, io, path::Path};

use crate::{gpu::Gpu, state::State};

/// `/proc/devices`, as far as the driver registers there.
const DEVICES: &str = "Character devices:
  1 mem
195 nvidia
195 nvidiactl
508 nvidia-caps
510 nvidia-uvm

Block devices:
";

/// Minor number of the capability of a GPU instance.
pub(crate) fn gi_minor(gpu: u32, gi: u32) -> u32 {
    3 + gpu * 135 + gi * 9
}

/// Minor number of the capability of a compute instance.
pub(crate) fn ci_minor(gpu: u32, gi: u32, ci: u32) -> u32 {
    gi_minor(gpu, gi) + 1 + ci
}

/// Brings the files below `proc` in line with the state.
pub(crate) fn write(proc: &Path, state: &State) -> io::Result<()> {
    let capabilities = proc.join("driver/nvidia/capabilities");
    if !capabilities.exists() {
        write_capability(&capabilities.join("mig/config"), 1)?;
        write_capability(&capabilities.join("mig/monitor"), 2)?;
        fs::write(proc.join("devices"), DEVICES)?;
    }
    for gpu in &state.gpus {
        write_gpu(&capabilities.join(format!("gpu{}/mig", gpu.minor)), gpu)?;
    }
    Ok(())
}

fn write_gpu(directory: &Path, gpu: &Gpu) -> io::Result<()> {
    let instances = gpu.instances.iter();
    let known: Vec<String> = instances.map(|i| format!("gi{}", i.id)).collect();
    remove_others(directory, &known)?;
    for instance in &gpu.instances {
        let gi = directory.join(format!("gi{}", instance.id));
        write_capability(&gi.join("access"), gi_minor(gpu.minor, instance.id))?;
        let compute = instance.compute.iter().map(|c| format!("ci{}", c.id));
        let known: Vec<String> = compute.chain(["access".to_owned()]).collect();
        remove_others(&gi, &known)?;
        for compute in &instance.compute {
            let minor = ci_minor(gpu.minor, instance.id, compute.id);
            write_capability(&gi.join(format!("ci{}/access", compute.id)), minor)?;
        }
    }
    Ok(())
}

fn write_capability(path: &Path, minor: u32) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
    fs::write(path, text)
}

/// Removes the directories of instances that are gone; a directory that does not exist is empty.
fn remove_others(directory: &Path, known: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !known.contains(&entry.file_name().to_string_lossy().into_owned()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
