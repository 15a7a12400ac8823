//! Many cards of one model, by the state that they are in.

use std::collections::BTreeSet;

use crate::layouts::{Layouts, StateId, WindowId};

/// Where a device was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placed {
    /// Index of the card.
    pub card: u32,
    /// The window on it.
    pub window: WindowId,
}

/// The cards, the state of each, and the profile on each window.
#[derive(Clone, Debug)]
pub(crate) struct Stock<'a> {
    pub(super) layouts: &'a Layouts,
    /// The state of each card.
    pub(super) cards: Vec<StateId>,
    /// For each state the cards that are in it.
    pub(super) members: Vec<BTreeSet<u32>>,
    /// The profile on each window of each card, where something is.
    profiles: Vec<Option<u8>>,
    /// For each state and window the state with that window toggled.
    next_state: Vec<Option<StateId>>,
}

impl<'a> Stock<'a> {
    /// So many empty cards.
    pub(super) fn new(layouts: &'a Layouts, cards: u32) -> Self {
        let mut members = vec![BTreeSet::new(); layouts.states.len()];
        members[0] = (0..cards).collect();
        let windows = layouts.windows.len();
        let all = layouts
            .ids()
            .flat_map(|state| (0..windows).map(move |window| (state, window)));
        let next_state = all
            .map(|(state, window)| layouts.toggled(state, WindowId::try_from(window).ok()?))
            .collect();
        Self {
            layouts,
            cards: vec![0; cards as usize],
            members,
            profiles: vec![None; cards as usize * windows],
            next_state,
        }
    }

    pub(super) fn windows(&self) -> WindowId {
        WindowId::try_from(self.layouts.windows.len()).unwrap_or(WindowId::MAX)
    }

    /// How many cards are empty.
    pub(super) fn empty(&self) -> u32 {
        u32::try_from(self.members[0].len()).unwrap_or(u32::MAX)
    }

    /// How many cards there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.cards.len()).unwrap_or(u32::MAX)
    }

    /// Slices that are held, of all cards.
    pub(super) fn held(&self) -> u32 {
        let states = self.layouts.ids().zip(&self.members);
        states
            .map(|(state, members)| {
                self.layouts.held(state).count() * u32::try_from(members.len()).unwrap_or(0)
            })
            .sum()
    }

    /// The profile on a window of a card.
    pub(super) fn profile(&self, placed: Placed) -> Option<u8> {
        self.profiles[self.at(placed)]
    }

    /// Puts a device of a profile on a free window.
    pub(super) fn put(&mut self, placed: Placed, profile: usize) {
        let at = self.at(placed);
        self.profiles[at] = u8::try_from(profile).ok();
        self.toggle(placed);
    }

    /// Removes the device on a window.
    pub(super) fn remove(&mut self, placed: Placed) {
        let at = self.at(placed);
        self.profiles[at] = None;
        self.toggle(placed);
    }

    fn at(&self, Placed { card, window }: Placed) -> usize {
        card as usize * self.layouts.windows.len() + usize::from(window)
    }

    fn toggle(&mut self, placed: Placed) {
        let card = &mut self.cards[placed.card as usize];
        let at = usize::from(*card) * self.layouts.windows.len() + usize::from(placed.window);
        let Some(next) = self.next_state[at] else {
            return;
        };
        self.members[usize::from(*card)].remove(&placed.card);
        self.members[usize::from(next)].insert(placed.card);
        *card = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn a_device_goes_without_a_trace() {
        let layouts = Layouts::new(&fixtures::a30()).unwrap();
        let mut stock = Stock::new(&layouts, 2);
        let placed = Placed { card: 1, window: 0 };
        stock.put(placed, 0);
        assert_eq!((stock.count(), stock.empty()), (2, 1));
        assert_eq!(stock.held(), layouts.windows[0].count());
        assert_eq!(stock.profile(placed), Some(0));
        stock.remove(placed);
        assert_eq!((stock.empty(), stock.held()), (2, 0));
        assert_eq!(stock.profile(placed), None);
    }
}
