//! How each step is carried out.

use std::{process::Command, time::Instant};

use domain::{claim::Slot, mode::VgpuMode};

use super::{
    Happening,
    thread::{Thread, millis},
};
use crate::{
    gpus::{
        instances::{Failure, Held, Millis, QUARANTINE_AFTER, Step, Tenure, Trouble},
        retry::{check_interval, destroy_interval},
    },
    materialise::journal::Bound,
    materialise::proc,
    nvml::{Cards, Code, LiveInstance, NvmlError},
};

/// How long after a change of mode that failed, milliseconds.
const MODE_AGAIN: Millis = 10_000;
/// How long after a reset of a card that was ill and still is, or cannot be reset, milliseconds.
const RESET_AGAIN: Millis = 600_000;
/// How long a card rests on which instances cannot be made, doubled each time up to ten minutes, milliseconds.
const REST: Millis = 60_000;

impl Thread {
    /// Carries out one step; the error is in NVML's words and already recorded and told.
    pub(super) fn carry_out(&mut self, cards: &Cards, step: Step) -> Result<(), String> {
        tracing::debug!(?step, "Step");
        self.at(Some(format!("{step:?}")));
        let started = Instant::now();
        match step {
            Step::Create { of, slot } => self.create(cards, of, slot),
            Step::Fail { of, slot, words } => {
                self.cannot_make(of, slot, words.clone(), false);
                Err(words)
            }
            Step::Destroy { gpu, id } => self.destroy(cards, &gpu, id, started),
            Step::Look { gpu, id } => {
                self.look(cards, &gpu, id);
                Ok(())
            }
            Step::SetMode { gpu, mode } => self.set_mode(cards, &gpu, mode),
            Step::Reset { gpu } => self.heal(cards, &gpu),
            Step::Offer { gpu } => {
                let state = self.state.cards.get_mut(&gpu);
                if let Some(trouble) = state.and_then(|state| state.trouble.as_mut()) {
                    trouble.offered = true;
                }
                Ok(())
            }
        }
    }

    /// Looks whether processes still run on an instance without pod, or of its last pod anywhere.
    fn look(&mut self, cards: &Cards, gpu: &str, id: u32) {
        let now = self.now();
        let Some(held) = self.state.held(gpu, id) else {
            return;
        };
        let Tenure::Lingering {
            last,
            look_at,
            looks,
        } = &mut held.tenure
        else {
            return;
        };
        *look_at = now + check_interval(*looks);
        *looks += 1;
        let (live, last) = (held.live.clone(), last.clone());
        let runs = match cards.processes(gpu, &live) {
            Ok(pids) if !pids.is_empty() => true,
            Ok(_) => last.is_some_and(|last| proc::pod_runs(&self.settings.proc, &last.uid)),
            Err(error) => {
                tracing::warn!(gpu, id, %error, "Cannot tell whether processes run on an instance");
                if is_stale(&error) {
                    self.survey(cards);
                }
                true
            }
        };
        if !runs
            && let Some(held) = self.state.held(gpu, id)
            && held.live == live
        {
            held.tenure = Tenure::Idle { since: now };
            self.state.settle(now);
            self.record_bindings();
        }
    }

    fn create(&mut self, cards: &Cards, of: Bound, slot: Slot) -> Result<(), String> {
        let started = Instant::now();
        let result = self.make(cards, &slot, &of);
        self.metrics.created(started.elapsed(), result.is_ok());
        match result {
            Ok((live, generation)) => {
                tracing::info!(
                    pod = of.pod,
                    container = of.container,
                    gpu = slot.gpu,
                    profile = slot.profile,
                    start = slot.start,
                    id = live.id,
                    ms = millis(started.elapsed()),
                    "Made an instance"
                );
                let message = format!(
                    "Made {} with {} MiB at slice {} of {} for container {}",
                    slot.profile, slot.mem, slot.start, slot.gpu, of.container
                );
                let pod = Some(of.uid.clone());
                self.happen(Happening::note(pod, "InstanceCreated", message));
                self.state
                    .create_failures
                    .remove(&(of.uid.clone(), slot.clone()));
                if let Some(state) = self.state.cards.get_mut(&slot.gpu) {
                    state.trouble = None;
                    state.instances.push(Held {
                        live,
                        generation: Some(generation),
                        tenure: Tenure::Pod(of),
                        fault: None,
                    });
                }
                Ok(())
            }
            Err(error) => {
                let words = format!(
                    "cannot make {} at {} on {}: {error}",
                    slot.profile, slot.start, slot.gpu
                );
                self.cannot_make(of, slot, words.clone(), true);
                self.survey(cards);
                Err(words)
            }
        }
    }

    /// Notes that an instance cannot be made; a pod that waits in vain is given up, and its card rests.
    fn cannot_make(&mut self, of: Bound, slot: Slot, words: String, rest: bool) {
        tracing::warn!(
            pod = of.pod,
            container = of.container,
            words,
            "No instance can be made"
        );
        let now = self.now();
        let key = (of.uid.clone(), slot);
        let before = self.state.create_failures.get(&key);
        let failure = Failure::again(before, now);
        let hopeless = failure.is_hopeless(now);
        if hopeless
            && rest
            && let Some(state) = self.state.cards.get_mut(&key.1.gpu)
        {
            let before = state.trouble.as_ref().filter(|trouble| trouble.offered);
            let times = before.map_or(0, |trouble| trouble.times) + 1;
            if state.trouble.as_ref().is_none_or(|trouble| trouble.offered) {
                state.trouble = Some(Trouble {
                    words: words.clone(),
                    times,
                    until: now + (REST << (times - 1).min(4)).min(600_000),
                    offered: false,
                });
            }
        }
        let gpu = key.1.gpu.clone();
        self.state.create_failures.insert(key, failure);
        self.happen(Happening {
            fails_pod: hopeless.then_some(gpu),
            ..Happening::warning(Some(of.uid), "InstanceCreationFailed", words)
        });
    }

    fn make(
        &mut self,
        cards: &Cards,
        slot: &Slot,
        of: &Bound,
    ) -> Result<(LiveInstance, u64), String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let state = self.state.cards.get(&slot.gpu).ok_or("the card is gone")?;
        let offer = state
            .card
            .model
            .offer(&slot.profile)
            .ok_or_else(|| words(&NvmlError::NoSuchProfile(slot.profile.clone())))?;
        let profile_id = offer.profile_id;
        let intent = self
            .journal
            .intend(&slot.gpu, profile_id, slot.start, slot.size);
        let generation = match intent {
            Ok(generation) => generation,
            Err(error) => {
                let said = words(&error);
                self.note(Err(error));
                return Err(said);
            }
        };
        let id = match cards.create_gpu_instance(&slot.gpu, profile_id, slot.start, slot.size) {
            Ok(id) => id,
            Err(error) => {
                self.release(generation);
                return Err(words(&error));
            }
        };
        let mut live = LiveInstance {
            id,
            profile_id,
            start: slot.start,
            size: slot.size,
            compute: vec![],
        };
        let rest = self
            .journal
            .made(generation, id)
            .map_err(|e| words(&e))
            .and_then(|()| {
                cards
                    .create_compute_instance(&slot.gpu, id)
                    .map_err(|e| words(&e))
            });
        match rest {
            Ok(compute) => {
                // Both are found again without these two, so the instance is good whatever becomes of them.
                let complete = self.journal.complete(generation, compute.id);
                self.note(complete);
                let bound = self.journal.bound(generation, of.clone());
                self.note(bound);
                live.compute.push(compute);
                Ok((live, generation))
            }
            Err(error) => {
                // Half an instance is of no use; if it stays, the next survey finds it by the journal.
                if cards.destroy(&slot.gpu, &live).is_ok() {
                    self.release(generation);
                }
                Err(error)
            }
        }
    }

    fn destroy(
        &mut self,
        cards: &Cards,
        gpu: &str,
        id: u32,
        started: Instant,
    ) -> Result<(), String> {
        let now = self.now();
        let Some(held) = self.state.held(gpu, id) else {
            return Ok(());
        };
        let Some(generation) = held.generation else {
            return Err("the instance is not ours to destroy".to_owned());
        };
        let live = held.live.clone();
        let failures = match &held.tenure {
            Tenure::Stuck { failures, .. } => *failures,
            _ => 0,
        };
        let result = cards.destroy(gpu, &live);
        self.metrics.destroyed(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => {
                tracing::info!(
                    gpu,
                    id,
                    start = live.start,
                    ms = millis(started.elapsed()),
                    "Removed an instance"
                );
                if let Some(state) = self.state.cards.get_mut(gpu) {
                    state.instances.retain(|held| held.live.id != id);
                }
                self.release(generation);
                if failures >= QUARANTINE_AFTER {
                    let message = format!(
                        "GPU instance {id} of {gpu} could be destroyed at last; its slices are offered again"
                    );
                    self.happen(Happening::note(None, "InstanceReleased", message));
                }
                Ok(())
            }
            Err(error) => {
                let (words, failures) = (error.to_string(), failures + 1);
                if let Some(held) = self.state.held(gpu, id) {
                    held.tenure = Tenure::Stuck {
                        failures,
                        retry_at: now + destroy_interval(failures),
                        reason: words.clone(),
                    };
                }
                tracing::warn!(gpu, id, failures, words, "Cannot remove an instance");
                if failures == QUARANTINE_AFTER {
                    let message = format!(
                        "GPU instance {id} of {gpu} cannot be destroyed ({words}); its slices are not offered until it can"
                    );
                    self.happen(Happening::warning(None, "InstanceQuarantined", message));
                }
                if error.code() != Some(Code::IN_USE) {
                    self.survey(cards);
                }
                Err(words)
            }
        }
    }

    fn set_mode(&mut self, cards: &Cards, gpu: &str, mode: VgpuMode) -> Result<(), String> {
        let result = self.change_mode(cards, gpu, mode == VgpuMode::Mig);
        let retry_at = self.now() + MODE_AGAIN;
        let failure = result.err();
        self.survey(cards);
        if let Some(state) = self.state.cards.get_mut(gpu) {
            state.mode_failure = failure.clone().map(|words| (words, retry_at));
            if failure.is_none() {
                // Either way: no instances, no clients, and on Ampere a reset.
                state.trouble = None;
            }
        }
        self.happen(match &failure {
            None => {
                tracing::info!(gpu, %mode, "Changed the mode");
                let message = format!("GPU {gpu} works in mode {mode} now");
                Happening::note(None, "ModeChanged", message)
            }
            Some(words) => {
                tracing::warn!(gpu, %mode, words, "Cannot change the mode");
                let message = format!("GPU {gpu} cannot change to mode {mode}: {words}");
                Happening::warning(None, "ModeChangeFailed", message)
            }
        });
        failure.map_or(Ok(()), Err)
    }

    fn change_mode(&mut self, cards: &Cards, gpu: &str, enable: bool) -> Result<(), String> {
        self.nobody_on(cards, gpu)?;
        self.unwatch();
        let Err(error) = cards.set_mig_mode(gpu, enable) else {
            return Ok(());
        };
        // Ampere: the mode is set, and in force after a reset.
        let mode = cards.mode_of(gpu).map_err(|e| e.to_string())?;
        let pending = mode.is_some_and(|mode| mode.pending == enable && mode.current != enable);
        if !pending || self.settings.reset.is_empty() {
            return Err(error.to_string());
        }
        self.reset(cards, gpu)
            .map_err(|words| format!("{error}; {words}"))?;
        match cards.mode_of(gpu) {
            Ok(Some(mode)) if mode.current == enable => Ok(()),
            _ => Err(format!("{error}; a reset did not help")),
        }
    }

    /// Resets a card because it is ill.
    fn heal(&mut self, cards: &Cards, gpu: &str) -> Result<(), String> {
        let result = self.reset(cards, gpu);
        self.survey(cards);
        let again = self.now() + RESET_AGAIN;
        if let Some(state) = self.state.cards.get_mut(gpu) {
            let words = result.as_ref().err().cloned();
            state.reset_failure = Some((words.unwrap_or_else(|| "was reset".to_owned()), again));
            if result.is_ok() {
                state.fault = None;
            }
        }
        self.happen(match &result {
            Ok(()) => {
                let message = format!("GPU {gpu} was reset because it was unhealthy");
                Happening::note(None, "GpuReset", message)
            }
            Err(words) => {
                let message = format!("GPU {gpu} cannot be reset: {words}");
                Happening::warning(None, "GpuResetFailed", message)
            }
        });
        result
    }

    /// Resets a card by the command of the settings, with no session of ours open.
    fn reset(&mut self, cards: &Cards, gpu: &str) -> Result<(), String> {
        self.nobody_on(cards, gpu)?;
        self.unwatch();
        let words = self.settings.reset.iter();
        let words: Vec<String> = words.map(|word| word.replace("{uuid}", gpu)).collect();
        let (program, arguments) = words.split_first().ok_or("no command resets it")?;
        tracing::info!(gpu, ?words, "Resetting a GPU");
        self.at(Some(words.join(" ")));
        let run = || Command::new(program).args(arguments).output();
        let output = self
            .reopen(cards, run)
            .ok_or("NVML cannot be opened again")?;
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Err(format!("{}: {}", words.join(" "), said.trim()))
    }

    /// Names those who have a card open, if any do.
    fn nobody_on(&self, cards: &Cards, gpu: &str) -> Result<(), String> {
        // Where NVML cannot say so, its own refusal has to do.
        let Ok(clients) = cards.clients(gpu) else {
            return Ok(());
        };
        if clients.is_empty() {
            return Ok(());
        }
        let named = clients.iter().map(|client| {
            let command = proc::command(&self.settings.proc, client.pid);
            let name = if command.is_empty() {
                &client.name
            } else {
                &command
            };
            format!("{name} (process {})", client.pid)
        });
        Err(format!(
            "in use by {}",
            named.collect::<Vec<_>>().join(", ")
        ))
    }
}

/// An instance that is not there or not as it was: what is known is out of date.
fn is_stale(error: &NvmlError) -> bool {
    matches!(
        error.code(),
        Some(Code::NOT_FOUND | Code::INVALID_ARGUMENT | Code::NOT_SUPPORTED)
    )
}
