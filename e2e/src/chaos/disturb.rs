//! What is done to the cluster.

use std::{fmt, fs, path::Path, thread, time::Duration};

use anyhow::Context;
use e2e::process::Process;
use nix::sys::signal::Signal;
use nvml_sim::{
    code::IN_USE,
    fault::{Action, Control, Rule},
    store::Store,
};
use tokio::time::Instant;

use super::{FOREIGN, HOLLOW, REAL};

/// A kind of disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Disturbance {
    AgentKilled,
    AgentUpdated,
    AgentFrozen,
    PluginKilled,
    PluginFrozen,
    WebhookKilled,
    SchedulerKilled,
    KubeletRestarted,
    ApiServerAway,
    NodeRebooted(&'static str),
    ClockJumps,
    DestroyInUse,
    DestroyStorm,
    CreateFails,
    GpuFault,
    GpuLost,
}

pub(super) const DISTURBANCES: [Disturbance; 17] = [
    Disturbance::AgentKilled,
    Disturbance::AgentUpdated,
    Disturbance::AgentFrozen,
    Disturbance::PluginKilled,
    Disturbance::PluginFrozen,
    Disturbance::WebhookKilled,
    Disturbance::SchedulerKilled,
    Disturbance::KubeletRestarted,
    Disturbance::ApiServerAway,
    Disturbance::NodeRebooted(REAL),
    Disturbance::NodeRebooted(HOLLOW),
    Disturbance::ClockJumps,
    Disturbance::DestroyInUse,
    Disturbance::DestroyStorm,
    Disturbance::CreateFails,
    Disturbance::GpuFault,
    Disturbance::GpuLost,
];

/// How far the clocks of the daemons jump. Nothing expires within hours: the test PKI's certificates are good for
/// centuries, the webhook's for 90 days (it is made before the first jump and checked by the API server, whose clock
/// stays), and of a token's 24 hours the API server's clock decides.
pub(super) const JUMPS: [&str; 6] = ["+2h", "-90m", "+20h", "-20h", "+11m", "-3h"];

/// Calls that remove instances.
const DESTROY: [&str; 2] = ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"];
/// How often each of the two calls fails in a storm: together 20 to 60 times.
pub(super) const STORM: std::ops::RangeInclusive<u64> = 10..=30;

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeRebooted(node) => write!(f, "NodeRebooted {node}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A process that does not run for a while; it goes on when the time is over, by a thread that waits for nothing
/// else, and when this is dropped.
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

/// Some calls that remove instances fail, on any card.
pub(super) fn destroy_in_use(times: u64) -> Vec<Rule> {
    vec![fails(DESTROY[1], None, IN_USE, times)]
}

/// On one card nothing can be removed.
pub(super) fn storm(card: usize, [compute, whole]: [u64; 2]) -> Vec<Rule> {
    vec![
        fails(DESTROY[0], Some(card), IN_USE, compute),
        fails(DESTROY[1], Some(card), IN_USE, whole),
    ]
}

/// Some instances cannot be made.
pub(super) fn create_fails(times: u64) -> Vec<Rule> {
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    vec![fails(call, None, nvml_sim::code::UNKNOWN, times)]
}

fn fails(call: &str, gpu: Option<usize>, code: u32, times: u64) -> Rule {
    Rule {
        call: call.to_owned(),
        gpu,
        nth: None,
        times: Some(times),
        action: Action::Code(code),
    }
}

/// A GPU falls off the bus, and is back after a while, by a thread that waits for nothing else.
pub(super) async fn lose(dir: &Path, gpu: usize, time: Duration) -> anyhow::Result<()> {
    let set = move |dir: &Path, lost: bool| {
        Store::new(dir).with(|state| {
            if let Some(card) = state.gpus.get_mut(gpu) {
                card.lost = lost;
            }
        })
    };
    let dir = dir.to_owned();
    let lost = tokio::task::spawn_blocking(move || {
        set(&dir, true)?;
        thread::spawn(move || {
            thread::sleep(time);
            if let Err(error) = set(&dir, false) {
                println!("         GPU {gpu} stays lost: {error}");
            }
        });
        Ok::<_, std::io::Error>(())
    });
    Ok(lost.await??)
}

/// A double bit ECC error: the driver wants a reset of the GPU.
pub(super) async fn fault(dir: &Path, gpu: usize) -> anyhow::Result<()> {
    let store = Store::new(dir);
    Ok(tokio::task::spawn_blocking(move || store.double_bit_error(gpu)).await??)
}

/// Adds faults to those that a node has already.
pub(super) async fn order(dir: &Path, rules: Vec<Rule>) -> anyhow::Result<()> {
    edit(dir, |control| add(control, rules)).await
}

/// Ends a storm, with whatever else keeps instances from being removed.
pub(super) async fn calm(dir: &Path) -> anyhow::Result<()> {
    edit(dir, |control| {
        let rules = &mut control.rules;
        rules.retain(|rule| !DESTROY.contains(&rule.call.as_str()));
    })
    .await
}

/// One rule for a call on a card: of two the one that lasts longer.
fn add(control: &mut Control, rules: Vec<Rule>) {
    control.rules.retain(|rule| rule.times != Some(0));
    for rule in rules {
        let alike = control.rules.iter_mut().find(|known| {
            (&known.call, known.gpu, known.action) == (&rule.call, rule.gpu, rule.action)
        });
        match alike {
            Some(known) => known.times = known.times.max(rule.times),
            None => control.rules.push(rule),
        }
    }
}

/// Changes a node's `control.json` under its lock, which a frozen agent may hold for a while.
async fn edit(
    dir: &Path,
    change: impl FnOnce(&mut Control) + Send + 'static,
) -> anyhow::Result<()> {
    let dir = dir.to_owned();
    let changed = tokio::task::spawn_blocking(move || {
        Store::new(&dir).with(|_| {
            let file = dir.join("control.json");
            let bytes = fs::read(&file).unwrap_or_default();
            // An agent that was killed while it wrote leaves half of one.
            let mut control = serde_json::from_slice(&bytes).unwrap_or_default();
            change(&mut control);
            fs::write(&file, serde_json::to_vec_pretty(&control)?)
        })
    });
    changed.await??.context("control.json")
}

/// What somebody else does at boot, before any agent: switches MIG mode on and makes an instance without a compute
/// instance. A reboot of its node takes it away, so it is made again then.
pub(super) fn make_foreign(gpus: &Store) -> anyhow::Result<()> {
    let (_, card, start) = FOREIGN;
    gpus.with(|state| {
        let card = &mut state.gpus[card];
        (card.mig, card.pending) = (true, true);
        let smallest = card.model().profiles.iter().min_by_key(|p| p.size);
        let profile = smallest.map_or((0, 1), |p| (p.id, p.size));
        card.create_at(profile.0, start, profile.1)
    })?
    .map(drop)
    .map_err(|code| anyhow::anyhow!("cannot make the foreign instance: NVML says {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_added_to_those_that_are_there() {
        let mut control = Control::default();
        add(&mut control, create_fails(2));
        add(&mut control, storm(1, [9, 8]));
        add(&mut control, storm(1, [3, 20]));
        add(&mut control, storm(0, [1, 1]));
        let times: Vec<_> = control
            .rules
            .iter()
            .map(|rule| (rule.gpu, rule.times))
            .collect();
        let expected = [
            (None, 2),
            (Some(1), 9),
            (Some(1), 20),
            (Some(0), 1),
            (Some(0), 1),
        ];
        assert_eq!(times, expected.map(|(gpu, times)| (gpu, Some(times))));
        control.rules[0].times = Some(0);
        add(&mut control, vec![]);
        assert_eq!(control.rules.len(), 4, "one that is used up goes");
    }

    #[tokio::test]
    async fn a_storm_ends_and_other_faults_stay() {
        let dir = tempfile::tempdir().unwrap();
        nvml_sim::provision(dir.path(), "n", &[]).unwrap();
        order(dir.path(), create_fails(2)).await.unwrap();
        order(dir.path(), storm(0, [9, 9])).await.unwrap();
        calm(dir.path()).await.unwrap();
        let text = fs::read(dir.path().join("control.json")).unwrap();
        let control: Control = serde_json::from_slice(&text).unwrap();
        assert_eq!(control.rules, create_fails(2));
        fs::write(dir.path().join("control.json"), "{\"ru").unwrap();
        order(dir.path(), create_fails(1)).await.unwrap();
    }

    #[test]
    fn a_frozen_process_goes_on_in_the_end() {
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
