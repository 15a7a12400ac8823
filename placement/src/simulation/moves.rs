//! Which running device to move so that another one finds a place.

use super::{
    order::Order,
    stock::{Placed, Stock},
};
use crate::layouts::{StateId, WindowId};

/// A device that was moved to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it was.
    pub from: Placed,
    /// Where it is.
    pub to: Placed,
}

/// The cheapest way to place a device of a profile by moving one other device.
pub(super) struct Moves<'s, 'a> {
    pub(super) stock: &'s Stock<'a>,
    pub(super) order: &'s Order,
    /// The worth of each state.
    pub(super) worth: &'s [f64],
}

impl Moves<'_, '_> {
    /// Where a device of the profile goes, and which one moves for it.
    pub(super) fn cheapest(&self, profile: usize) -> Option<(Placed, Move)> {
        let mut best: Option<(f64, Placed, Move)> = None;
        for (state, from, without) in self.removals() {
            let Some(moved) = self.stock.profile(from) else {
                continue;
            };
            for (placed, with) in self.places(profile, from.card, without) {
                let own = self.worth_of(state) - self.worth_of(with);
                for (to, more) in self.targets(usize::from(moved), from.card, with) {
                    let cost = own + more;
                    if best.as_ref().is_none_or(|(known, ..)| cost < *known) {
                        best = Some((cost, placed, Move { from, to }));
                    }
                }
            }
        }
        best.map(|(_, placed, moved)| (placed, moved))
    }

    fn worth_of(&self, state: StateId) -> f64 {
        self.worth[usize::from(state)]
    }

    /// For each state, window and profile on it one device to take away: the state before, the device, the state after.
    fn removals(&self) -> Vec<(StateId, Placed, StateId)> {
        let mut removals = Vec::new();
        for (state, members) in self.stock.layouts.ids().zip(&self.stock.members) {
            for window in 0..self.stock.windows() {
                let Some(without) = self.stock.layouts.toggled(state, window) else {
                    continue;
                };
                // Cards in one state differ in the profiles that stand on a window.
                let mut tried = [false; u8::MAX as usize + 1];
                for &card in members {
                    let from = Placed { card, window };
                    let Some(profile) = self.stock.profile(from) else {
                        break;
                    };
                    if !std::mem::replace(&mut tried[usize::from(profile)], true) {
                        removals.push((state, from, without));
                    }
                }
            }
        }
        removals
    }

    /// The free windows of a profile on a card in a state, and the state with it there.
    fn places(
        &self,
        profile: usize,
        card: u32,
        state: StateId,
    ) -> impl Iterator<Item = (Placed, StateId)> {
        let layouts = self.stock.layouts;
        let windows = layouts.placements[profile].iter().copied();
        let free = windows.filter(move |window| layouts.is_free(state, *window));
        free.map(move |window: WindowId| {
            let with = layouts.toggled(state, window).unwrap_or(state);
            (Placed { card, window }, with)
        })
    }

    /// Where a device could move to and what it costs: the best other card, and the same card in its new state.
    fn targets(
        &self,
        profile: usize,
        card: u32,
        with: StateId,
    ) -> impl Iterator<Item = (Placed, f64)> {
        let layouts = self.stock.layouts;
        let elsewhere = self.order[profile].iter().find_map(|ranked| {
            let members = &self.stock.members[usize::from(ranked.state)];
            let card = members.iter().copied().find(|member| *member != card)?;
            let window = ranked.window;
            let then = layouts.toggled(ranked.state, window)?;
            let cost = self.worth_of(ranked.state) - self.worth_of(then);
            Some((Placed { card, window }, cost))
        });
        let windows = layouts.placements[profile].iter();
        let here = windows
            .filter(move |window| layouts.is_free(with, **window))
            .filter_map(move |&window| {
                let then = layouts.toggled(with, window)?;
                let cost = self.worth_of(with) - self.worth_of(then);
                Some((Placed { card, window }, cost))
            });
        elsewhere.into_iter().chain(here)
    }
}
