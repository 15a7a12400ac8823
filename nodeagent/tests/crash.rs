//! The agent is killed at every call of NVML and at every write of its journal; after a restart nothing
//! is lost, made twice or left over, and what runs beside has noticed nothing.
//!
//! The simulator ends the agent's process before or after the n-th call. A journal write lies between
//! two calls, so a write that was cut short is the state before the next call with the records since the
//! last one missing or cut short. `CRASH_STRIDE=1` (`make crash`) takes every point, otherwise a sample is taken.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that prints a table, and its child process"
)]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{
    claim::Claim,
    config::FilterDevices,
    fixtures,
    gpu::{Model, Offer},
    mode::VgpuMode,
};
use nodeagent::{
    gpus::{instance::Ownership, modes::WantedModes, state::GpuState},
    materialise::{journal::Journal, settings::Settings, thread::NvmlThread},
    metrics::Metrics,
};
use nvml_sim::{
    GpuSpec, built_library,
    fault::{Action, Control, Rule},
    provision,
    state::State,
    store::Store,
};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use support::{claim, pods};

/// What an agent is to bring about, and then end.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Goal {
    /// Claims by UID of the pod; all of them have the container `main`.
    pods: BTreeMap<String, Claim>,
    /// The pod whose container starts.
    ensure: Option<String>,
    /// `mig` or `hami-core`.
    mode: String,
}

impl Goal {
    fn mode(&self) -> VgpuMode {
        self.mode.parse().unwrap()
    }
}

/// The agent: the real owner of NVML and the real journal, without kubelet and API server.
#[test]
fn child_process() {
    let Some(dir) = std::env::var_os("CRASH_CHILD").map(PathBuf::from) else {
        return;
    };
    let goal: Goal = serde_json::from_slice(&fs::read(dir.join("goal.json")).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let settings = Settings {
        library: Some(built_library().unwrap().into()),
        journal: dir.join("journal"),
        idle_ttl: Duration::ZERO,
        idle_limit: 0,
        filter: FilterDevices::default(),
        // Another thread's calls would come between those that are counted.
        ignored_faults: "all".parse().unwrap(),
        reset_command: vec![],
        proc: dir.join("proc"),
    };
    let (tell, _happenings) = tokio::sync::mpsc::channel(64);
    let metrics = Metrics::register(&mut Registry::default());
    let nvml = NvmlThread::start(settings, metrics, tell).unwrap();
    nvml.set_wanted_modes(WantedModes {
        node: Some(goal.mode.parse().unwrap()),
        devices: vec![],
    });
    let claims = goal.pods.iter();
    nvml.set_pods(pods(claims.map(|(uid, claim)| (uid.as_str(), claim))));
    runtime.block_on(async {
        if let Some(uid) = &goal.ensure {
            let limit = Duration::from_secs(10);
            let devices = nvml.ensure_devices(uid, "main", limit).await;
            assert_eq!(devices.map(|devices| devices.len()), Ok(1));
        }
        let mut inventory = nvml.inventory();
        let settled = inventory.wait_for(|inventory| {
            let cards = &inventory.state.gpus;
            let is_settled = |card: &GpuState| {
                let mig = card.surveyed.mig.is_some_and(|mode| mode.current);
                let mut ours = card.instances.iter().filter(|h| h.generation.is_some());
                let held = ours.all(|held| matches!(held.ownership, Ownership::Claimed(_)));
                held && mig == (goal.mode() == VgpuMode::Mig)
            };
            inventory.nvml_failure.is_none()
                && !cards.is_empty()
                && cards.values().all(|card| is_settled(card))
        });
        let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(settled.is_ok_and(|settled| settled.is_ok()), "not settled");
    });
}

/// Runs an agent in a directory until it has brought the goal about, or was killed.
fn agent(dir: &Path, goal: &Goal) -> Output {
    fs::write(dir.join("goal.json"), serde_json::to_vec(goal).unwrap()).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--nocapture"])
        .env("NVML_SIM_DIR", dir)
        .env("CRASH_CHILD", dir)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

fn words(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(&[&out[..], &err[..]].concat()).into_owned()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn state(dir: &Path) -> State {
    Store::new(dir).snapshot().unwrap()
}

/// Instances by card and first slice: id, serial number and compute instances.
type Truth = BTreeMap<(usize, u8), (u32, u32, usize)>;

fn truth(dir: &Path) -> Truth {
    let state = state(dir);
    let cards = state.gpus.iter().enumerate();
    cards
        .flat_map(|(card, c)| c.instances.iter().map(move |i| (card, i)))
        .map(|(card, i)| ((card, i.start), (i.id, i.serial, i.compute.len())))
        .collect()
}

/// What is done to an agent, from which state, and what must be there in the end.
struct Operation {
    name: &'static str,
    base: PathBuf,
    goal: Goal,
    /// Goals of the agents that come after, and where instances must be in the end.
    after: Vec<(Goal, Vec<(usize, u8)>)>,
    /// Instances that must be the very same all the time.
    same: Vec<(usize, u8)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    points: u64,
    violations: u64,
}

impl Operation {
    /// Kills an agent at the n-th call.
    fn killed(&self, dir: &Path, n: u64, action: Action) -> PathBuf {
        let dir = dir.join(format!("{}-{n}-{action:?}", self.name));
        copy(&self.base, &dir);
        let rule = Rule {
            call: "*".to_owned(),
            gpu: None,
            nth: Some(n),
            times: Some(1),
            action,
        };
        let control = Control {
            rules: vec![rule],
            ..Control::default()
        };
        Store::new(&dir).control(Some(&control)).unwrap();
        let output = agent(&dir, &self.goal);
        assert!(!output.status.success(), "not killed at call {n}");
        Store::new(&dir).control(None).unwrap();
        dir
    }

    /// Calls of an agent that nobody kills.
    fn calls(&self, dir: &Path) -> u64 {
        let dir = dir.join(format!("{}-calls", self.name));
        copy(&self.base, &dir);
        Store::new(&dir).control(Some(&Control::default())).unwrap();
        let output = agent(&dir, &self.goal);
        assert!(output.status.success(), "{}: {}", self.name, words(&output));
        let control = fs::read(dir.join("control.json")).unwrap();
        let control: Control = serde_json::from_slice(&control).unwrap();
        control.seen["*"]
    }

    /// Starts agents on what a killed one left; tells what is wrong then.
    fn restart(&self, dir: &Path) -> Vec<String> {
        let before = truth(&self.base);
        let mut wrong = Vec::new();
        for (number, (goal, wanted)) in self.after.iter().enumerate() {
            let own = dir.with_extension(format!("after-{number}"));
            copy(dir, &own);
            let output = agent(&own, goal);
            if !output.status.success() {
                wrong.push(format!("the next agent fails: {}", words(&output)));
            }
            let after = truth(&own);
            let found: Vec<(usize, u8)> = after.keys().copied().collect();
            if found != *wanted {
                wrong.push(format!("instances at {found:?} instead of {wanted:?}"));
            }
            for (at, (_, _, compute)) in after.iter().filter(|(at, _)| **at != FOREIGN) {
                if *compute != 1 {
                    wrong.push(format!("{compute} compute instances at {at:?}"));
                }
            }
            for at in &self.same {
                if after.get(at) != before.get(at) {
                    wrong.push(format!("the instance at {at:?} is another"));
                }
            }
            let (journal, bad) = Journal::open(&own.join("journal")).unwrap();
            let ours = wanted.iter().filter(|at| **at != FOREIGN).count();
            if journal.entries().len() != ours || !bad.is_empty() {
                wrong.push(format!("journal {:?}, bad {bad:?}", journal.entries()));
            }
            fs::remove_dir_all(own).unwrap();
        }
        wrong
    }

    /// All points, or each `stride`-th call from `first` on.
    fn run(&self, dir: &Path, first: u64, stride: u64) -> Count {
        let mut count = Count::default();
        // Between two effects every point leaves the same: cards and journal are all that the next agent finds.
        let mut known: HashMap<[Vec<u8>; 2], bool> = HashMap::new();
        let mut check = |dir: &Path, what: String| {
            let left = ["state.json", "journal"].map(|file| fs::read(dir.join(file)));
            let left = left.map(Result::unwrap_or_default);
            let good = *known.entry(left).or_insert_with(|| {
                let wrong = self.restart(dir);
                if !wrong.is_empty() {
                    println!("{}, {what}: {}", self.name, wrong.join("; "));
                }
                wrong.is_empty()
            });
            count.points += 1;
            count.violations += u64::from(!good);
        };
        let calls = self.calls(dir);
        let journal = |dir: &Path| fs::read(dir.join("journal")).unwrap_or_default();
        let mut n = 1 + first % stride;
        while n <= calls {
            let mut written = 0;
            if n > 1 {
                let last = self.killed(dir, n - 1, Action::KillAfter);
                written = journal(&last).len();
                check(&last, format!("after call {}", n - 1));
                fs::remove_dir_all(last).unwrap();
            }
            let now = self.killed(dir, n, Action::KillBefore);
            let text = journal(&now);
            check(&now, format!("before call {n}"));
            // Each record that was written since the call before, missing or cut short.
            let mut start = if n > 1 { written } else { text.len() };
            while start < text.len() {
                let line = text[start..].iter().position(|byte| *byte == b'\n');
                let end = line.map_or(text.len(), |line| start + line + 1);
                for length in [start, start + 1, usize::midpoint(start, end), end - 1] {
                    fs::write(now.join("journal"), &text[..length]).unwrap();
                    check(
                        &now,
                        format!("journal cut to {length} bytes before call {n}"),
                    );
                }
                start = end;
            }
            fs::remove_dir_all(now).unwrap();
            n += stride;
        }
        count
    }
}

/// Where somebody else's instance is.
const FOREIGN: (usize, u8) = (1, 0);

fn cards(dir: &Path, model: &str, mig: bool) -> [String; 2] {
    fs::create_dir_all(dir).unwrap();
    let spec = GpuSpec {
        model: model.to_owned(),
        mig,
        mirrored: false,
    };
    provision(dir, "crash", &[spec.clone(), spec]).unwrap();
    [0, 1].map(|card| state(dir).gpus[card].uuid())
}

fn goal(pods: &[(&str, &Claim)], ensure: Option<&str>) -> Goal {
    let pods = pods.iter();
    Goal {
        pods: pods
            .map(|(uid, claim)| ((*uid).to_owned(), (*claim).clone()))
            .collect(),
        ensure: ensure.map(str::to_owned),
        mode: "mig".to_owned(),
    }
}

/// Create, destroy and adopt of an instance of one profile, beside a running pod's and a foreign one.
fn of_profile(dir: &Path, key: &str, model: &Model, offer: &Offer) -> Vec<Operation> {
    let base = dir.join("base");
    let [gpu, other] = cards(&base, key, true);
    let small = model.offers.iter().find(|o| o.is_plain()).unwrap();
    let start = offer.starts[0];
    let window = offer.windows().next().unwrap();
    let mut free = small.windows().zip(&small.starts);
    // Beside it where there is room, else on the other card.
    let beside = match free.find(|(own, _)| !own.overlaps(window)) {
        Some((_, start)) => (0, *start),
        None => (1, *small.starts.last().unwrap()),
    };
    let bystander = claim([&gpu, &other][beside.0], small, beside.1);
    let made = Store::new(&base)
        .with(|state| state.gpus[1].create_at(small.profile_id, FOREIGN.1, small.size));
    assert!(made.unwrap().is_ok());
    let done = |dir: &Path, goal: &Goal| {
        let output = agent(dir, goal);
        let words = words(&output);
        assert!(output.status.success(), "{key} {}: {words}", offer.profile);
    };
    let own = claim(&gpu, offer, start);
    let alone = goal(&[("beside", &bystander)], None);
    done(&base, &goal(&[("beside", &bystander)], Some("beside")));
    let both = goal(&[("beside", &bystander), ("own", &own)], Some("own"));
    let with = dir.join("with");
    copy(&base, &with);
    done(&with, &both);
    let (mut one, mut two) = (vec![FOREIGN, beside], vec![FOREIGN, beside, (0, start)]);
    one.sort_unstable();
    two.sort_unstable();
    vec![
        Operation {
            name: "create",
            base,
            goal: both.clone(),
            // The pod starts, or it was deleted in the meantime.
            after: vec![(both.clone(), two.clone()), (alone.clone(), one.clone())],
            same: one.clone(),
        },
        Operation {
            name: "destroy",
            base: with.clone(),
            goal: alone.clone(),
            after: vec![(alone, one.clone())],
            same: one,
        },
        Operation {
            name: "adopt",
            base: with,
            goal: both.clone(),
            after: vec![(both, two.clone())],
            same: two,
        },
    ]
}

/// MIG mode on and off.
fn of_mode(dir: &Path, key: &str) -> Vec<Operation> {
    let of = |name: &'static str, mode: VgpuMode| {
        let base = dir.join(name);
        cards(&base, key, mode != VgpuMode::Mig);
        let goal = Goal {
            mode: mode.to_string(),
            ..goal(&[], None)
        };
        Operation {
            name,
            base,
            goal: goal.clone(),
            after: vec![(goal, vec![])],
            same: vec![],
        }
    };
    vec![of("on", VgpuMode::Mig), of("off", VgpuMode::HamiCore)]
}

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

#[test]
fn a_killed_agent_leaves_nothing_that_the_next_one_does_not_put_right() {
    let stride = std::env::var("CRASH_STRIDE").map_or(61, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
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
    let started = Instant::now();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(number) else {
                return;
            };
            let dir = dir.path().join(number.to_string());
            let counts: Vec<(&str, Count)> = line
                .operations(&dir)
                .iter()
                // Another sample of each.
                .map(|op| (op.name, op.run(&dir, number as u64 * 7, stride)))
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
    let mut sum = Count::default();
    println!("points at which the agent was killed (violations), of every {stride}. call:");
    for (number, counts) in results.lock().unwrap().iter() {
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
