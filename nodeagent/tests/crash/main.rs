//! The agent is killed at every call of NVML and at every write of its journal. After a restart nothing is lost,
//! created twice or left over, and what runs beside has noticed nothing.
//!
//! The simulator ends the agent's process before or after the n-th call. A journal write lies between
//! two calls, so a write that was cut short is the state before the next call with the records since the
//! last one missing or cut short. `CRASH_STRIDE=1` (`make crash`) takes every point, otherwise a sample is taken.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that prints a table, and its child process"
)]

mod agent;
mod operation;
mod operations;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use domain::{
    fixtures,
    gpu::{Model, Offer},
};

use crate::{
    operation::{Count, Operation},
    operations::{of_mode, of_profile},
};

/// A line of the table: a profile of a model, or its mode.
struct Line {
    key: &'static str,
    model: Model,
    offer: Option<Offer>,
}

impl Line {
    fn operations(&self, dir: &Path) -> Vec<Operation> {
        match &self.offer {
            Some(offer) => of_profile(dir, self.key, &self.model, offer),
            None => of_mode(dir, self.key),
        }
    }
}

fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for key in ["a100-80gb", "h100-80gb", "a30", "rtx-pro-6000"] {
        let model = fixtures::model(key).unwrap();
        let plain = model.offers.iter().filter(|offer| offer.is_plain());
        let offers: Vec<_> = plain.cloned().map(Some).chain([None]).collect();
        lines.extend(offers.into_iter().map(|offer| Line {
            key,
            model: model.clone(),
            offer,
        }));
    }
    lines
}

/// Runs the lines on all cores. Returns the counts by line.
fn run(lines: &[Line], stride: u64) -> BTreeMap<usize, Vec<(&'static str, Count)>> {
    let dir = tempfile::tempdir().unwrap();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(number) else {
                return;
            };
            let dir = dir.path().join(number.to_string());
            let operations = line.operations(&dir);
            // Each line samples other calls.
            let first = number as u64 * 7;
            let counts = operations
                .iter()
                .map(|operation| (operation.name, operation.run(&dir, first, stride)))
                .collect();
            results.lock().unwrap().insert(number, counts);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn a_killed_agent_leaves_nothing_that_the_next_one_does_not_put_right() {
    let stride = std::env::var("CRASH_STRIDE").map_or(61, |text| text.parse().unwrap());
    let lines = lines();
    let started = Instant::now();
    let results = run(&lines, stride);
    let mut sum = Count::default();
    println!("points at which the agent was killed (violations), of every {stride}. call:");
    for (number, counts) in &results {
        let line = &lines[*number];
        let what = line.offer.as_ref().map_or("mode", |offer| &offer.profile);
        print!("{:14}{what:10}", line.key);
        for (name, count) in counts {
            print!("{name:>9} {:4} ({})", count.points, count.violations);
            sum.points += count.points;
            sum.violations += count.violations;
        }
        println!();
    }
    let took = started.elapsed().as_secs();
    println!(
        "{} points, {} violations, {took} s",
        sum.points, sum.violations
    );
    assert_eq!(sum.violations, 0);
}
