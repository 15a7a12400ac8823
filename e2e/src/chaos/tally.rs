//! What happened in a run, and how it is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{checker::Checker, disturbance::Disturbance, violation::Violation};

/// The counts of a run.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) created: u64,
    pub(super) deleted: u64,
    /// By reason, and the disturbance before it.
    pub(super) failed: BTreeMap<(String, String), u64>,
    pub(super) last: Option<Disturbance>,
    pub(super) disturbances: BTreeMap<Disturbance, u64>,
    pub(super) looks: u64,
    /// Processes that exited by themselves and are not of Tessera: kubelet, while containerd is not up yet.
    pub(super) exits: BTreeMap<String, u64>,
    /// With the time of the first look that showed it.
    pub(super) violations: BTreeMap<Violation, Duration>,
}

pub(super) fn print(tally: &Tally, checker: &Checker, took: Duration) {
    let line = |what: &str, count: u64| println!("{what:40}{count:>8}");
    let count = |set: &BTreeSet<String>| u64::try_from(set.len()).unwrap_or_default();
    let longest = |what: &str, time: Duration| println!("{what:40}{:>8.1}", time.as_secs_f64());
    println!("\nafter {} s:", took.as_secs());
    for (what, times) in &tally.disturbances {
        line(&what.to_string(), *times);
    }
    line("all disturbances", tally.disturbances.values().sum());
    for (process, times) in &tally.exits {
        line(&format!("{process} exited by itself"), *times);
    }
    line("pods created", tally.created);
    line("pods deleted", tally.deleted);
    line("pods seen running", count(&checker.ran));
    line("pods running again after a reboot", count(&checker.back));
    for ((reason, after), times) in &tally.failed {
        println!("pods failed: {reason} (after {after}): {times}");
    }
    let [usual, storm] = checker.longest_unclaimed;
    longest("longest time unclaimed, s", usual);
    longest("the same during a destroy storm, s", storm);
    longest("longest time published wrongly, s", checker.longest_unequal);
    line("looks at GPUs and API server", tally.looks);
    let violations = u64::try_from(tally.violations.len());
    line("violations", violations.unwrap_or_default());
    for (violation, at) in &tally.violations {
        println!("  {:.1} s: {violation}", at.as_secs_f64());
    }
}
