//! For each profile the states of a card where it fits, best first: a rule as a look-up.

use domain::{rule::Rule, slices::Slices};

use crate::{
    layouts::{Layouts, StateId, WindowId},
    mix::Mix,
    potential::{Potential, Weighing, freedom, placements},
};

/// For each profile the states where it fits, best first.
pub(super) type Order = Vec<Vec<RankedState>>;

/// A state where a profile fits. States of one rank are as good as each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct RankedState {
    pub(super) rank: u32,
    pub(super) state: StateId,
    /// The best window there.
    pub(super) window: WindowId,
}

/// The order by a rule; `worth` is that of each state, empty where the rule knows none.
pub(super) fn by_rule(
    layouts: &Layouts,
    rule: Rule,
    preferred: &[Vec<WindowId>],
    worth: &[f64],
) -> Order {
    let placements = placements(layouts);
    ordered(layouts, preferred, |state, window| {
        let after = usize::from(layouts.toggled(state, window).unwrap_or(state));
        match rule {
            // Where the state decides alone, the start order chooses the window.
            Rule::BestFit | Rule::Hami210Binpack => f64::from(layouts.free(state)),
            Rule::HamiMaster => {
                let held = layouts
                    .windows_of(state)
                    .chain([layouts.windows[usize::from(window)]]);
                let left = freedom(layouts.slices, &placements, held.collect());
                f64::from(layouts.free(state)) * 1e3 - left
            }
            _ if worth.is_empty() => 0.0,
            _ => worth[usize::from(state)] - worth[after],
        }
    })
}

/// The order while many cards are empty.
pub(super) fn filling(layouts: &Layouts, preferred: &[Vec<WindowId>], mix: &Mix) -> Order {
    let filling = Potential::new(layouts, Weighing::Filling, mix);
    let held: Vec<Vec<Slices>> = layouts
        .ids()
        .map(|state| layouts.windows_of(state).collect())
        .collect();
    ordered(layouts, preferred, |state, window| {
        filling.loss(&held[usize::from(state)])(layouts.windows[usize::from(window)])
    })
}

/// For each profile the states where it fits, by what its best window costs there; of windows that cost the same
/// the one that is preferred.
fn ordered(
    layouts: &Layouts,
    preferred: &[Vec<WindowId>],
    cost: impl Fn(StateId, WindowId) -> f64,
) -> Order {
    let of_profile = |windows: &Vec<WindowId>| {
        let mut order: Vec<(f64, usize, StateId, WindowId)> = layouts
            .ids()
            .filter_map(|state| {
                let free = windows
                    .iter()
                    .enumerate()
                    .filter(|(_, w)| layouts.is_free(state, **w));
                let priced = free.map(|(at, &window)| (cost(state, window), at, state, window));
                priced.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            })
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        ranked(order)
    };
    preferred.iter().map(of_profile).collect()
}

fn ranked(order: Vec<(f64, usize, StateId, WindowId)>) -> Vec<RankedState> {
    let mut rank = 0;
    let mut last: Option<(f64, usize)> = None;
    let ranked = order.into_iter().map(|(cost, at, state, window)| {
        // Costs that differ by rounding alone are the same.
        let same = last.is_some_and(|(c, a)| (cost - c).abs() < 1e-12 && a == at);
        rank += u32::from(!same);
        last = Some((cost, at));
        RankedState {
            rank,
            state,
            window,
        }
    });
    ranked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn every_state_with_room_is_there_once_and_the_fullest_first_for_best_fit() {
        let layouts = Layouts::new(&fixtures::a30()).unwrap();
        let order = by_rule(&layouts, Rule::BestFit, &layouts.placements, &[]);
        for (profile, states) in order.iter().enumerate() {
            let fits = layouts.ids().filter(|state| {
                let mut windows = layouts.placements[profile].iter();
                windows.any(|window| layouts.is_free(*state, *window))
            });
            assert_eq!(states.len(), fits.count());
            assert!(states.is_sorted_by_key(|state| layouts.free(state.state)));
            assert!(states.is_sorted_by_key(|state| state.rank));
        }
    }
}
