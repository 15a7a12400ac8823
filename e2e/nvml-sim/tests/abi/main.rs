//! The C ABI as an agent meets it: the cdylib, loaded by nvml-wrapper, in processes of their own.
//!
//! Each test starts this program again as [`child::child_process`] with a state directory in its
//! environment, because the library reads it there, as programs that are not ours do.
#![allow(unsafe_code, reason = "raw calls of the ABI")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test and its child process"
)]

mod child;
mod raw;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use nvml_sim::{
    GpuSpec,
    fault::{Action, Control, Rule},
    provision,
    store::Store,
};

use crate::raw::{IN_USE, INSUFFICIENT_RESOURCES};

fn child(dir: &Path, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child::child_process", "--nocapture"])
        .env("NVML_SIM_DIR", dir)
        .env("ABI_CHILD", what);
    command
}

fn run(dir: &Path, what: &str) {
    let output = child(dir, what).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {text}");
}

/// A process on the first MIG device, or on the whole GPU.
struct DeviceProcess(Child);

impl DeviceProcess {
    fn start(dir: &Path, what: &str) -> Self {
        let mut child = child(dir, what).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines
            .map_while(Result::ok)
            .any(|line| line.contains("held"));
        assert!(held, "{what}");
        Self(child)
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(model: &str, mig: bool) -> tempfile::TempDir {
    gpus(model, mig, 1)
}

fn gpus(model: &str, mig: bool, count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec = GpuSpec {
        model: model.into(),
        mig,
        mirrored: false,
    };
    provision(dir.path(), "abi", &vec![spec; count]).unwrap();
    dir
}

fn order(dir: &Path, call: &str, nth: Option<u64>, action: Action) {
    let rule = Rule {
        call: call.into(),
        gpu: None,
        nth,
        times: Some(1),
        action,
    };
    let control = Control {
        rules: vec![rule],
        ..Control::default()
    };
    Store::new(dir).control(Some(&control)).unwrap();
}

#[test]
fn an_instance_is_made_seen_and_removed() {
    run(node("a100-80gb", true).path(), "life");
}

#[test]
fn a_process_on_a_device_keeps_it() {
    let dir = node("a100-80gb", true);
    run(dir.path(), "make");
    let holder = DeviceProcess::start(dir.path(), "hold");
    run(dir.path(), "held");
    drop(holder);
    assert!(Store::new(dir.path()).device_processes().is_empty());
    assert_eq!(
        Store::new(dir.path()).snapshot().unwrap().gpus[0]
            .instances
            .len(),
        1
    );
}

#[test]
fn a_client_of_the_whole_gpu_forbids_the_first_instance() {
    let dir = node("h100-80gb", true);
    let holder = DeviceProcess::start(dir.path(), "hold-gpu");
    run(dir.path(), "make-in-use");
    drop(holder);
    run(dir.path(), "make");
}

#[test]
fn ampere_takes_a_new_mode_at_the_reset() {
    let dir = node("a100-80gb", false);
    let holder = DeviceProcess::start(dir.path(), "hold-gpu");
    run(dir.path(), "enable-busy");
    drop(holder);
    let store = Store::new(dir.path());
    store.with(|state| state.gpus[0].reset()).unwrap();
    run(dir.path(), "enabled");
}

#[test]
fn an_xid_arrives_once_with_its_instance_and_none_from_before() {
    run(node("a100-80gb", true).path(), "events");
}

#[test]
fn an_unhealthy_gpu_reports_the_recovery_that_it_needs() {
    run(node("a100-80gb", true).path(), "health");
}

#[test]
fn a_lost_gpu_is_lost_to_every_call_and_the_others_stay() {
    run(gpus("h100-80gb", true, 2).path(), "lost");
}

#[test]
fn a_mode_that_is_not_activated_stays_pending() {
    let dir = node("h100-80gb", false);
    order(
        dir.path(),
        "nvmlDeviceSetMigMode",
        None,
        Action::Activation(IN_USE),
    );
    run(dir.path(), "enable-later");
}

#[test]
fn a_reset_waits_until_nobody_has_the_gpu_open() {
    let dir = node("a100-80gb", true);
    run(dir.path(), "session");
    run(dir.path(), "make");
    let store = Store::new(dir.path());
    let uuid = store.snapshot().unwrap().gpus[0].uuid();
    let reset = || {
        let output = Command::new(env!("CARGO_BIN_EXE_nvml-sim"))
            .args(["nvidia-smi", "--gpu-reset", "-i", &uuid])
            .env("NVML_SIM_DIR", dir.path())
            .output()
            .unwrap();
        // A backtrace may follow.
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or_default().to_owned();
        let instances = store.snapshot().unwrap().gpus[0].instances.len();
        (output.status.success(), words, instances)
    };
    let holder = DeviceProcess::start(dir.path(), "hold-gpu");
    let refusal = "Error: GPU 0 is in use by another client: 1 NVML session, 1 process";
    assert_eq!(reset(), (false, refusal.to_owned(), 1));
    drop(holder);
    assert_eq!(reset(), (true, String::new(), 0));
}

#[test]
fn the_second_call_fails_as_ordered() {
    let dir = node("a100-80gb", true);
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    order(
        dir.path(),
        call,
        Some(2),
        Action::Code(INSUFFICIENT_RESOURCES),
    );
    run(dir.path(), "make-refused");
}

#[test]
fn a_caller_dies_before_or_after_its_call() {
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    for (action, instances) in [(Action::KillBefore, 0), (Action::KillAfter, 1)] {
        let dir = node("a100-80gb", true);
        order(dir.path(), call, None, action);
        let status = child(dir.path(), "make").output().unwrap().status;
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        let gpus = Store::new(dir.path()).snapshot().unwrap().gpus;
        assert_eq!(gpus[0].instances.len(), instances);
        assert!(
            gpus[0]
                .instances
                .iter()
                .all(|instance| instance.compute.is_empty())
        );
    }
}
