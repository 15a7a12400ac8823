//! The sets in which a process waits for events. No I/O.

use std::collections::BTreeSet;

use crate::{
    code::{Code, GPU_IS_LOST, NOT_SUPPORTED},
    event::{Event, KINDS},
    state::State,
};

/// What one event set is registered for, and how far it has come.
#[derive(Debug, Default)]
pub(crate) struct EventSet {
    /// GPU, kinds, and the number of the first event that counts.
    registered: Vec<(usize, u64, u64)>,
    /// Number of the first event that has not been looked at.
    next: u64,
    /// GPUs whose loss was reported.
    lost: BTreeSet<usize>,
}

impl EventSet {
    /// Registers for what happens to a GPU from now on.
    pub(crate) fn register(&mut self, gpu: usize, kinds: u64, state: &State) -> Result<(), Code> {
        if kinds & !KINDS != 0 {
            return Err(NOT_SUPPORTED);
        }
        self.registered.push((gpu, kinds, state.next_event));
        Ok(())
    }

    /// The next event; without one, each loss of a GPU is an error once.
    pub(crate) fn next(&mut self, state: &State) -> Result<Option<Event>, Code> {
        let wanted = |event: &&Event| {
            event.number >= self.next
                && self.registered.iter().any(|(gpu, kinds, since)| {
                    *gpu == event.gpu && kinds & event.kind != 0 && event.number >= *since
                })
        };
        if let Some(event) = state.events.iter().find(wanted) {
            self.next = event.number + 1;
            return Ok(Some(*event));
        }
        let is_lost = |gpu: &usize| state.gpus.get(*gpu).is_some_and(|gpu| gpu.lost);
        self.lost.retain(is_lost);
        let mut gpus = self.registered.iter().map(|(gpu, ..)| *gpu);
        match gpus.find(|gpu| is_lost(gpu) && self.lost.insert(*gpu)) {
            Some(_) => Err(GPU_IS_LOST),
            None => Ok(None),
        }
    }
}
