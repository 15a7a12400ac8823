//! Processes that this test's executable starts from itself: they do nothing unless their variables are set.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nvml_sim::{process::DeviceProcess, store::Store};

/// A reset command in place of nvidia-smi.
pub(crate) fn reset_command() -> Vec<String> {
    let own = std::env::current_exe().unwrap();
    ["env", "RESET_GPU={uuid}", own.to_str().unwrap()]
        .into_iter()
        .chain(["--exact", "processes::reset", "--nocapture"])
        .map(str::to_owned)
        .collect()
}

#[test]
fn reset() {
    if let Ok(gpu) = std::env::var("RESET_GPU") {
        let dir = std::env::var_os("NVML_SIM_DIR").unwrap();
        nvml_sim::reset(Path::new(&dir), &gpu).unwrap();
    }
}

/// A process on a GPU, or on its first instance, until it is killed.
pub(crate) fn start_client(gpu: usize, on_instance: bool) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::client", "--nocapture"])
        .env("CLIENT_GPU", gpu.to_string())
        .env("CLIENT_ON_INSTANCE", u8::from(on_instance).to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn client() {
    let Ok(gpu) = std::env::var("CLIENT_GPU") else {
        return;
    };
    let gpu: usize = gpu.parse().unwrap();
    let store = Store::new(Path::new(&std::env::var_os("NVML_SIM_DIR").unwrap()));
    let on_instance = std::env::var("CLIENT_ON_INSTANCE").unwrap() == "1";
    let gpus = store.snapshot().unwrap().gpus;
    let first = gpus[gpu].instances.first();
    let instance = first.filter(|_| on_instance).map(|i| (i.id, i.serial, 0));
    let opened = store.hold(&DeviceProcess {
        pid: std::process::id(),
        gpu,
        instance,
    });
    let _opened = opened.unwrap();
    std::thread::sleep(Duration::from_mins(10));
}
