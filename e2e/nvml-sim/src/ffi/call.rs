//! The frame of every call: the fault that is ordered for it, then the work on the locked state.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

use crate::{
    code::{Code, DRIVER_NOT_LOADED, SUCCESS, UNKNOWN},
    fault::Action,
    state::State,
    store::Store,
};

fn directory() -> PathBuf {
    std::env::var_os("NVML_SIM_DIR").map_or_else(|| "/var/lib/nvml-sim".into(), PathBuf::from)
}

fn kill_self() {
    // SAFETY: signals only this process, which is what the fault asks for.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Work on the locked state.
pub(super) fn locked<T>(
    store: &Store,
    work: impl FnOnce(&mut State) -> Result<T, Code>,
) -> Result<T, Code> {
    store.with(work).unwrap_or(Err(DRIVER_NOT_LOADED))
}

/// Most calls: work on the locked state.
pub(super) fn call(
    name: &str,
    gpu: Option<usize>,
    work: impl FnOnce(&Store, &mut State) -> Result<(), Code>,
) -> Code {
    faulty(name, gpu, |store, _| {
        locked(store, |state| work(store, state))
    })
}

/// Every call goes through here: faults first, then the work, which knows the fault.
pub(super) fn faulty(
    name: &str,
    gpu: Option<usize>,
    work: impl FnOnce(&Store, Option<Action>) -> Result<(), Code>,
) -> Code {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let store = Store::new(&directory());
        let action = store.fault(name, gpu).unwrap_or_default();
        match action {
            Some(Action::Code(code)) => return code,
            Some(Action::DelayMs(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            Some(Action::Hang) => loop {
                std::thread::sleep(Duration::from_hours(1));
            },
            Some(Action::KillBefore) => kill_self(),
            Some(Action::KillAfter | Action::Activation(_)) | None => {}
        }
        let result = work(&store, action).map_or_else(|code| code, |()| SUCCESS);
        if action == Some(Action::KillAfter) {
            kill_self();
        }
        result
    }));
    done.unwrap_or(UNKNOWN)
}

/// The time that the hardware takes for a change, spent outside of the lock.
pub(super) fn latency() {
    let ms = Store::new(&directory())
        .snapshot()
        .map_or(0, |state| state.latency_ms);
    std::thread::sleep(Duration::from_millis(ms));
}
