//! All states that a card of one model can be in: sets of disjoint windows.
//!
//! A *window* is the slice set of a legal placement of a plain profile; profiles that stand on the
//! same slices share it. An 8-slice card has 14 windows and 417 states, so whatever a rule needs
//! to know of a state is computed once for all of them.

use std::collections::HashMap;

use domain::{
    gpu::{Model, Offer},
    slices::Slices,
};

/// Index of a state in [`Layouts::states`]; 0 is the empty card.
pub type StateId = u16;
/// Index of a window in [`Layouts::windows`].
pub type WindowId = u8;

/// The windows and states of the cards of one model.
#[derive(Clone, Debug)]
pub struct Layouts {
    /// Memory slices of the card.
    pub slices: u8,
    /// The plain profiles, in NVML's order.
    pub offers: Vec<Offer>,
    /// All windows, by start and then by size.
    pub windows: Vec<Slices>,
    /// For each profile its windows, by ascending start.
    pub placements: Vec<Vec<WindowId>>,
    /// Each state as a set of windows, one bit each.
    pub states: Vec<u32>,
    ids: HashMap<u32, StateId>,
    /// For each window those that it overlaps, itself among them.
    overlaps: Vec<u32>,
}

impl Layouts {
    /// Enumerates the states of a model; `None` for one without MIG, or with more than 32 windows.
    pub fn new(model: &Model) -> Option<Self> {
        let offers: Vec<Offer> = model
            .offers
            .iter()
            .filter(|o| o.is_plain())
            .cloned()
            .collect();
        let mut windows: Vec<Slices> = offers.iter().flat_map(Offer::windows).collect();
        windows.sort();
        windows.dedup();
        if windows.is_empty() || windows.len() > 32 {
            return None;
        }
        let find = |window: Slices| {
            let at = windows.iter().position(|known| *known == window);
            at.and_then(|at| WindowId::try_from(at).ok())
                .unwrap_or(WindowId::MAX)
        };
        let placements = offers
            .iter()
            .map(|offer| offer.windows().map(find).collect())
            .collect();
        let overlaps: Vec<u32> = windows
            .iter()
            .map(|window| {
                let bits = windows
                    .iter()
                    .enumerate()
                    .filter(|(_, other)| window.overlaps(**other));
                bits.fold(0, |set, (at, _)| set | 1 << at)
            })
            .collect();
        let mut states = vec![0u32];
        let mut next = 0;
        while let Some(&state) = states.get(next) {
            next += 1;
            // Only windows after the last one: each set is met once.
            let first = u32::BITS - state.leading_zeros();
            for at in first..u32::try_from(windows.len()).unwrap_or(0) {
                if overlaps[at as usize] & state == 0 {
                    states.push(state | 1 << at);
                }
            }
        }
        let ids = states
            .iter()
            .enumerate()
            .filter_map(|(at, state)| Some((*state, StateId::try_from(at).ok()?)))
            .collect();
        Some(Self {
            slices: model.memory_slices,
            offers,
            windows,
            placements,
            states,
            ids,
            overlaps,
        })
    }

    /// The state with a window added, or removed where it is held; `None` where that is not a state.
    pub fn toggled(&self, state: StateId, window: WindowId) -> Option<StateId> {
        self.ids
            .get(&(self.states[usize::from(state)] ^ 1 << window))
            .copied()
    }

    /// Whether a window is free in a state.
    pub fn is_free(&self, state: StateId, window: WindowId) -> bool {
        self.states[usize::from(state)] & self.overlaps[usize::from(window)] == 0
    }

    /// The windows that are held in a state.
    pub fn windows_of(&self, state: StateId) -> impl Iterator<Item = Slices> {
        let mask = self.states[usize::from(state)];
        let windows = self.windows.iter().enumerate();
        windows
            .filter(move |(at, _)| mask & 1 << at != 0)
            .map(|(_, window)| *window)
    }

    /// The slices that a state holds.
    pub fn held(&self, state: StateId) -> Slices {
        self.windows_of(state).collect()
    }

    /// How many slices a state leaves free.
    pub fn free(&self, state: StateId) -> u32 {
        u32::from(self.slices).saturating_sub(self.held(state).count())
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<usize> {
        self.offers.iter().position(|offer| offer.profile == name)
    }

    /// All states.
    pub fn ids(&self) -> impl Iterator<Item = StateId> + use<> {
        0..StateId::try_from(self.states.len()).unwrap_or(StateId::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    /// Layouts with profiles, counted from the states: a window counts once for each profile that may stand on it.
    fn counted(model: &Model, wanted: impl Fn(&str) -> bool) -> (u64, u64) {
        let mut model = model.clone();
        model.offers.retain(|offer| wanted(&offer.profile));
        let layouts = Layouts::new(&model).unwrap();
        let users = |window: usize| {
            let users = layouts
                .placements
                .iter()
                .filter(|p| p.contains(&u8::try_from(window).unwrap()));
            users.count() as u64
        };
        let (mut valid, mut maximal) = (0, 0);
        for id in layouts.ids() {
            let mask = layouts.states[usize::from(id)];
            let ways: u64 = (0..layouts.windows.len())
                .filter(|at| mask & 1 << at != 0)
                .map(users)
                .product();
            valid += if mask == 0 { 0 } else { ways };
            let full = (0..layouts.windows.len())
                .all(|at| !layouts.is_free(id, u8::try_from(at).unwrap()));
            maximal += if full { ways } else { 0 };
        }
        (valid, maximal)
    }

    #[test]
    fn a_card_has_few_states() {
        for (model, windows, states) in [
            (fixtures::a100_80gb(), 14, 417),
            (fixtures::a30(), 7, 26),
            (fixtures::rtx_pro_6000(), 7, 26),
        ] {
            let layouts = Layouts::new(&model).unwrap();
            assert_eq!(
                (layouts.windows.len(), layouts.states.len()),
                (windows, states)
            );
        }
    }

    #[test]
    fn the_numbers_of_layouts_are_those_of_the_mig_user_guide() {
        for model in fixtures::models() {
            let base = |name: &str| {
                let offer = model.offer(name).unwrap();
                // The double-memory single: one compute slice on two memory slices.
                !(offer.compute_slices == 1 && offer.size == 2)
            };
            let (few, all) = match (model.memory_slices, model.compute_slices) {
                (8, 7) => ((297, 19), (722, 78)),
                (_, 4) => ((25, 5), (25, 5)),
                other => panic!("{}: no figures for {other:?}", model.name),
            };
            assert_eq!(counted(&model, base), few, "{}", model.name);
            assert_eq!(counted(&model, |_| true), all, "{}", model.name);
        }
    }

    #[test]
    fn adding_and_removing_a_window_are_inverse() {
        for model in [
            fixtures::a100_80gb(),
            fixtures::a30(),
            fixtures::rtx_pro_6000(),
        ] {
            let layouts = Layouts::new(&model).unwrap();
            for id in layouts.ids() {
                for window in 0..u8::try_from(layouts.windows.len()).unwrap() {
                    if layouts.is_free(id, window) {
                        let more = layouts.toggled(id, window).unwrap();
                        assert_eq!(layouts.toggled(more, window), Some(id));
                        assert!(layouts.free(more) < layouts.free(id));
                    }
                }
            }
        }
    }
}
