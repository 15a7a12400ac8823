//! A process of the machine, found again by id *and* start time.

use std::{fs, time::Duration};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::wait::until;

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
pub(crate) const TERMINATION_GRACE: Duration = Duration::from_secs(8);

/// A process of the machine: the id alone could be another process by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since the boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// The process that has this id now; a zombie has ended.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|started| Self { pid, started })
    }

    /// Whether it is still running.
    pub fn is_alive(self) -> bool {
        // Reaps it where it is our child; for another parent's child ECHILD is ignored.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal; a process that has ended gets none.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Memory in KiB, all that is resident, the part that is no file of the disk, and the most that ever was
    /// (`VmRSS`, `RssAnon`, `VmHWM`), and time that its threads have been on a processor.
    pub fn usage(self) -> Option<([u64; 3], Duration)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let kib = |field: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let memory = [kib("VmRSS:")?, kib("RssAnon:")?, kib("VmHWM:")?];
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let on_processor = threads.flatten().filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Some((memory, Duration::from_nanos(on_processor.sum())))
    }

    /// The arguments it was started with.
    pub fn command_line(self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    /// All processes of the machine.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Self::of)
            .collect()
    }
}

/// The start time in a line of `/proc/PID/stat`; none for a zombie.
fn parse_stat(stat: &str) -> Option<u64> {
    // The name may hold spaces and brackets, so count from its last bracket: the state is field 3.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

/// Ends processes: SIGTERM to all, SIGKILL to those that are left after the grace time.
pub(crate) async fn end(processes: &[Process], grace: Duration) {
    for process in processes {
        process.signal(Signal::SIGTERM);
    }
    let gone = || processes.iter().all(|process| !process.is_alive());
    if until("", grace, async || gone().then_some(()))
        .await
        .is_ok()
    {
        return;
    }
    for process in processes {
        process.signal(Signal::SIGKILL);
    }
    // Only a process in an uninterruptible call outlives this; the check for leftovers names it.
    let _ = until("", grace, async || gone().then_some(())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_name_with_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat(&stat.replace(" S ", " Z ")), None);
        assert_eq!(parse_stat("7 (sh"), None);
    }
}
