//! An operation during which the agent is killed, at one point after another.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use nodeagent::materialise::journal::Journal;
use nvml_sim::{
    fault::{Action, Control, Rule},
    store::Store,
};

use crate::{
    agent::{Goal, output_text, run_agent},
    world::{FOREIGN, Instances, copy, instances},
};

/// What an agent does when it is killed, on which state, and what must be there in the end.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// The directory as it is before.
    pub(crate) base: PathBuf,
    pub(crate) goal: Goal,
    /// Goals of the agents that come after, and where instances must be in the end.
    pub(crate) after: Vec<(Goal, Vec<(usize, u8)>)>,
    /// Instances that must not be replaced.
    pub(crate) same: Vec<(usize, u8)>,
}

/// How many points were tried, and after how many something was wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) points: u64,
    pub(crate) violations: u64,
}

/// The points of one operation, as they are tried.
struct Points<'a> {
    operation: &'a Operation,
    /// Between two effects every point leaves the same: GPUs and journal are all that the next agent finds.
    known: HashMap<[Vec<u8>; 2], bool>,
    count: Count,
}

impl Operation {
    /// Tries all points, or those around each `stride`-th call from `first` on.
    pub(crate) fn run(&self, dir: &Path, first: u64, stride: u64) -> Count {
        let mut points = Points {
            operation: self,
            known: HashMap::new(),
            count: Count::default(),
        };
        let calls = self.count_calls(dir);
        let mut call = 1 + first % stride;
        while call <= calls {
            let written = (call > 1).then(|| points.after_call(dir, call - 1));
            points.before_call(dir, call, written);
            call += stride;
        }
        points.count
    }

    /// Kills an agent at a call. Returns its directory.
    fn kill_at(&self, dir: &Path, call: u64, action: Action) -> PathBuf {
        let dir = dir.join(format!("{}-{call}-{action:?}", self.name));
        copy(&self.base, &dir);
        let rule = Rule {
            call: "*".to_owned(),
            gpu: None,
            nth: Some(call),
            times: Some(1),
            action,
        };
        let control = Control {
            rules: vec![rule],
            ..Control::default()
        };
        Store::new(&dir).control(Some(&control)).unwrap();
        let output = run_agent(&dir, &self.goal);
        assert!(!output.status.success(), "not killed at call {call}");
        Store::new(&dir).control(None).unwrap();
        dir
    }

    /// The number of calls of an agent that is not killed.
    fn count_calls(&self, dir: &Path) -> u64 {
        let dir = dir.join(format!("{}-calls", self.name));
        copy(&self.base, &dir);
        Store::new(&dir).control(Some(&Control::default())).unwrap();
        let output = run_agent(&dir, &self.goal);
        let text = output_text(&output);
        assert!(output.status.success(), "{}: {text}", self.name);
        let control = fs::read(dir.join("control.json")).unwrap();
        let control: Control = serde_json::from_slice(&control).unwrap();
        control.seen["*"]
    }

    /// Starts agents on what a killed one left. Returns what is wrong then.
    fn restart(&self, dir: &Path) -> Vec<String> {
        let before = instances(&self.base);
        let mut wrong = Vec::new();
        for (number, (goal, wanted)) in self.after.iter().enumerate() {
            let own = dir.with_extension(format!("after-{number}"));
            copy(dir, &own);
            let output = run_agent(&own, goal);
            if !output.status.success() {
                wrong.push(format!("the next agent fails: {}", output_text(&output)));
            }
            self.check_instances(&before, &instances(&own), wanted, &mut wrong);
            let (journal, bad) = Journal::open(&own.join("journal")).unwrap();
            let ours = wanted.iter().filter(|at| **at != FOREIGN).count();
            if journal.entries().len() != ours || !bad.is_empty() {
                wrong.push(format!("journal {:?}, bad {bad:?}", journal.entries()));
            }
            fs::remove_dir_all(own).unwrap();
        }
        wrong
    }

    fn check_instances(
        &self,
        before: &Instances,
        after: &Instances,
        wanted: &[(usize, u8)],
        wrong: &mut Vec<String>,
    ) {
        let found: Vec<(usize, u8)> = after.keys().copied().collect();
        if found != wanted {
            wrong.push(format!("instances at {found:?} instead of {wanted:?}"));
        }
        for (at, (_, _, compute)) in after.iter().filter(|(at, _)| **at != FOREIGN) {
            if *compute != 1 {
                wrong.push(format!("{compute} compute instances at {at:?}"));
            }
        }
        for at in &self.same {
            if after.get(at) != before.get(at) {
                wrong.push(format!("the instance at {at:?} was replaced"));
            }
        }
    }
}

impl Points<'_> {
    /// Kills an agent after a call. Returns the length of its journal.
    fn after_call(&mut self, dir: &Path, call: u64) -> usize {
        let killed = self.operation.kill_at(dir, call, Action::KillAfter);
        let written = journal(&killed).len();
        self.check(&killed, &format!("after call {call}"));
        fs::remove_dir_all(killed).unwrap();
        written
    }

    /// Kills an agent before a call, and as if each record that was written since the call before (from `written` on)
    /// were missing or cut short.
    fn before_call(&mut self, dir: &Path, call: u64, written: Option<usize>) {
        let killed = self.operation.kill_at(dir, call, Action::KillBefore);
        let text = journal(&killed);
        self.check(&killed, &format!("before call {call}"));
        let mut start = written.unwrap_or(text.len());
        while start < text.len() {
            let line = text[start..].iter().position(|byte| *byte == b'\n');
            let end = line.map_or(text.len(), |line| start + line + 1);
            for length in [start, start + 1, usize::midpoint(start, end), end - 1] {
                fs::write(killed.join("journal"), &text[..length]).unwrap();
                let point = format!("journal cut to {length} bytes before call {call}");
                self.check(&killed, &point);
            }
            start = end;
        }
        fs::remove_dir_all(killed).unwrap();
    }

    fn check(&mut self, dir: &Path, point: &str) {
        let left = ["state.json", "journal"].map(|file| fs::read(dir.join(file)));
        let left = left.map(Result::unwrap_or_default);
        let operation = self.operation;
        let good = *self.known.entry(left).or_insert_with(|| {
            let wrong = operation.restart(dir);
            if !wrong.is_empty() {
                println!("{}, {point}: {}", operation.name, wrong.join("; "));
            }
            wrong.is_empty()
        });
        self.count.points += 1;
        self.count.violations += u64::from(!good);
    }
}

fn journal(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("journal")).unwrap_or_default()
}
