//! Faults of the simulated GPUs: which calls fail, which GPU is lost or unhealthy.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Context;
use nvml_sim::{
    code::{IN_USE, UNKNOWN},
    fault::{Action, Control, Rule},
    store::Store,
};

use super::nodes::FOREIGN;

/// The calls that destroy instances.
const DESTROY_CALLS: [&str; 2] = ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"];

/// The times that each of the two calls fails in a storm: 20 to 60 together.
pub(super) const STORM_FAILURES: std::ops::RangeInclusive<u64> = 10..=30;

/// Some calls that destroy instances fail, on any GPU.
pub(super) fn destroy_in_use(times: u64) -> Vec<Rule> {
    vec![fails(DESTROY_CALLS[1], None, IN_USE, times)]
}

/// On one GPU nothing can be destroyed.
pub(super) fn storm(gpu: usize, [compute, whole]: [u64; 2]) -> Vec<Rule> {
    vec![
        fails(DESTROY_CALLS[0], Some(gpu), IN_USE, compute),
        fails(DESTROY_CALLS[1], Some(gpu), IN_USE, whole),
    ]
}

/// Some instances cannot be created.
pub(super) fn create_fails(times: u64) -> Vec<Rule> {
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    vec![fails(call, None, UNKNOWN, times)]
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
            if let Some(gpu) = state.gpus.get_mut(gpu) {
                gpu.lost = lost;
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

/// A double bit ECC error: the driver asks for a reset of the GPU.
pub(super) async fn fault(dir: &Path, gpu: usize) -> anyhow::Result<()> {
    let store = Store::new(dir);
    Ok(tokio::task::spawn_blocking(move || store.double_bit_error(gpu)).await??)
}

/// Adds faults to those that are injected into a node already.
pub(super) async fn inject(dir: &Path, rules: Vec<Rule>) -> anyhow::Result<()> {
    edit(dir, |control| add(control, rules)).await
}

/// Ends a storm, and every other fault that keeps instances from being destroyed.
pub(super) async fn end_storm(dir: &Path) -> anyhow::Result<()> {
    edit(dir, |control| {
        let rules = &mut control.rules;
        rules.retain(|rule| !DESTROY_CALLS.contains(&rule.call.as_str()));
    })
    .await
}

/// There is one rule per call and GPU: of two the one that lasts longer.
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

/// Makes the foreign instance, as somebody else does at boot, before any agent: switches MIG mode on and creates a GPU
/// instance without a compute instance. A reboot of the node removes it, so it is made again then.
pub(super) fn make_foreign(gpus: &Store) -> anyhow::Result<()> {
    let (_, index, start) = FOREIGN;
    gpus.with(|state| {
        let gpu = &mut state.gpus[index];
        (gpu.mig, gpu.pending) = (true, true);
        let smallest = gpu.model().profiles.iter().min_by_key(|p| p.size);
        let profile = smallest.map_or((0, 1), |p| (p.id, p.size));
        gpu.create_at(profile.0, start, profile.1)
    })?
    .map(drop)
    .map_err(|code| anyhow::anyhow!("cannot make the foreign instance: NVML returned {code}"))
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
        inject(dir.path(), create_fails(2)).await.unwrap();
        inject(dir.path(), storm(0, [9, 9])).await.unwrap();
        end_storm(dir.path()).await.unwrap();
        let text = fs::read(dir.path().join("control.json")).unwrap();
        let control: Control = serde_json::from_slice(&text).unwrap();
        assert_eq!(control.rules, create_fails(2));
        fs::write(dir.path().join("control.json"), "{\"ru").unwrap();
        inject(dir.path(), create_fails(1)).await.unwrap();
    }
}
