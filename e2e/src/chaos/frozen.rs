//! Processes that do not run for a while.

use std::{thread, time::Duration};

use e2e::process::Process;
use nix::sys::signal::Signal;
use tokio::time::Instant;

/// A process that is stopped for a while. It continues when the time is over, by a thread that does nothing else, or when
/// this is dropped.
pub(super) struct Frozen {
    pub(super) name: String,
    pub(super) until: Instant,
    process: Process,
}

impl Frozen {
    pub(super) fn new(name: String, process: Process, time: Duration) -> Self {
        process.signal(Signal::SIGSTOP);
        thread::spawn(move || {
            thread::sleep(time);
            process.signal(Signal::SIGCONT);
        });
        let until = Instant::now() + time;
        Self {
            name,
            until,
            process,
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_frozen_process_continues_in_the_end() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
            stat.rsplit(") ").next().unwrap().chars().next().unwrap()
        };
        let becomes = |wanted: char| {
            for _ in 0..200 {
                if state() == wanted {
                    return true;
                }
                thread::sleep(Duration::from_millis(20));
            }
            false
        };
        assert!(becomes('S'));
        let frozen = Frozen::new("s".to_owned(), process, Duration::from_hours(1));
        assert!(becomes('T'));
        drop(frozen);
        assert!(becomes('S'));
        let frozen = Frozen::new("s".to_owned(), process, Duration::from_millis(100));
        assert!(becomes('T') && becomes('S'), "by itself");
        drop(frozen);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
