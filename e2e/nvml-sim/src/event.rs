//! Events of cards, and the sets in which a process waits for them. No I/O.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    card::{Code, GPU_IS_LOST, NOT_SUPPORTED},
    store::State,
};

/// `nvmlEventTypeSingleBitEccError`.
pub const SINGLE_BIT_ECC: u64 = 1;
/// `nvmlEventTypeDoubleBitEccError`.
pub const DOUBLE_BIT_ECC: u64 = 2;
/// `nvmlEventTypeXidCriticalError`.
pub const XID: u64 = 8;
/// The kinds that happen to a simulated card.
pub const KINDS: u64 = SINGLE_BIT_ECC | DOUBLE_BIT_ECC | XID;

/// Something that happened to a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which one it is of all that ever happened; [`State::raise`] gives it.
    pub number: u64,
    /// Index of the card.
    pub gpu: usize,
    /// One of [`KINDS`].
    pub kind: u64,
    /// The XID of an [`XID`].
    pub data: u64,
    /// The GPU instance that it is attributed to.
    pub gi: Option<u32>,
    /// The compute instance that it is attributed to.
    pub ci: Option<u32>,
}

/// What one event set is registered for, and how far it has come.
#[derive(Debug, Default)]
pub(crate) struct EventSet {
    /// Card, kinds, and the number of the first event that counts.
    registered: Vec<(usize, u64, u64)>,
    /// Number of the first event that was not looked at.
    next: u64,
    /// Cards whose loss was told.
    lost: BTreeSet<usize>,
}

impl EventSet {
    /// Registers for what happens to a card from now on.
    pub(crate) fn register(&mut self, gpu: usize, kinds: u64, state: &State) -> Result<(), Code> {
        if kinds & !KINDS != 0 {
            return Err(NOT_SUPPORTED);
        }
        self.registered.push((gpu, kinds, state.next_event));
        Ok(())
    }

    /// The next event; without one, each loss of a card is an error once.
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
        let is_lost = |gpu: &usize| state.cards.get(*gpu).is_some_and(|card| card.lost);
        self.lost.retain(is_lost);
        let mut gpus = self.registered.iter().map(|(gpu, ..)| *gpu);
        match gpus.find(|gpu| is_lost(gpu) && self.lost.insert(*gpu)) {
            Some(_) => Err(GPU_IS_LOST),
            None => Ok(None),
        }
    }
}
