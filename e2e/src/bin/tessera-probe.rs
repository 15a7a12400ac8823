//! Runs in a container: prints the GPU devices that NVML shows there, as one JSON object; with `hold` it stays on them.
#![allow(clippy::print_stdout, reason = "what it prints is its purpose")]
#![allow(unsafe_code, reason = "one function of the simulated library")]

use anyhow::Context;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::nvmlDevice_t;
use serde_json::json;

/// The library's name in containers, as NVIDIA's toolkit mounts it.
const LIBRARY: &str = "libnvidia-ml.so.1";

fn main() -> anyhow::Result<()> {
    let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init()?;
    let hold = std::env::args().nth(1).as_deref() == Some("hold");
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count()? {
        let gpu = nvml.device_by_index(index)?;
        let mut instances = Vec::new();
        for index in 0..gpu.mig_device_count().unwrap_or(0) {
            let Ok(instance) = gpu.mig_device_by_index(index) else {
                continue;
            };
            let memory = instance.memory_info()?.total >> 20;
            instances.push(json!({ "uuid": instance.uuid()?, "memoryMib": memory }));
            if hold {
                stay_on(&instance)?;
            }
        }
        if hold && instances.is_empty() {
            stay_on(&gpu)?;
        }
        gpus.push(json!({ "uuid": gpu.uuid()?, "instances": instances }));
    }
    println!("{}", json!({ "gpus": gpus }));
    if hold {
        // Until the container is stopped.
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// What the first CUDA call of a process does: the process is on the device until it ends.
fn stay_on(device: &Device<'_>) -> anyhow::Result<()> {
    // SAFETY: the library is loaded already and stays; the handle is of this device and of this library.
    let code = unsafe {
        let library = libloading::Library::new(LIBRARY)?;
        let hold: libloading::Symbol<'_, unsafe extern "C" fn(nvmlDevice_t) -> u32> = library
            .get(b"nvmlSimHold\0")
            .context("only a simulated device can be held")?;
        let code = hold(device.handle());
        std::mem::forget(library);
        code
    };
    anyhow::ensure!(code == 0, "nvmlSimHold returned {code}");
    Ok(())
}
