//! The rules that only simulations know, and the order in which the baselines try the starts of a profile.

use std::cmp::Reverse;

use domain::{gpu::Offer, rule::Rule, slices::Slices};

use super::{
    order::RankedState,
    stock::{Placed, Stock},
};
use crate::layouts::{Layouts, StateId, WindowId};

/// The windows of each profile in the order in which a rule tries them on a card.
pub(super) fn preferred_windows(layouts: &Layouts, rule: Rule) -> Vec<Vec<WindowId>> {
    let profiles = layouts.placements.iter().zip(&layouts.offers);
    profiles
        .map(|(windows, offer)| by_preference(windows, offer, rule))
        .collect()
}

fn by_preference(windows: &[WindowId], offer: &Offer, rule: Rule) -> Vec<WindowId> {
    let descending = || windows.iter().rev().copied().collect();
    let compute = offer.compute_slices;
    match rule {
        // HAMi 2.10: 1g and 3g from the highest start, the others from the lowest.
        Rule::Hami210 | Rule::Hami210Binpack if compute == 3 => descending(),
        Rule::Hami210 | Rule::Hami210Binpack if compute == 1 && offer.size == 1 => descending(),
        Rule::BestFit if offer.size > 1 => descending(),
        Rule::BestFit => {
            // 6, 4, 5, 0, 1, 2, 3: what keeps the larger windows.
            let half = windows.len().div_ceil(2);
            let mut order: Vec<(usize, WindowId)> = windows.iter().copied().enumerate().collect();
            order.sort_by_key(|(at, _)| (*at < half, at + 1 != windows.len(), *at));
            order.into_iter().map(|(_, window)| window).collect()
        }
        _ => windows.to_vec(),
    }
}

/// The first card that has room, at its lowest start; `states` are all states where the profile fits.
pub(super) fn first_fit(stock: &Stock<'_>, states: &[RankedState]) -> Option<Placed> {
    let first = states.iter().filter_map(|ranked| {
        let members = &stock.members[usize::from(ranked.state)];
        Some((*members.first()?, ranked.window))
    });
    let (card, window) = first.min()?;
    Some(Placed { card, window })
}

/// One card after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    pub(super) fn choose(&mut self, stock: &Stock<'_>, profile: usize) -> Option<Placed> {
        let count = stock.cards.len();
        for card in (0..count).map(|step| (self.next + step) % count) {
            let mut windows = stock.layouts.placements[profile].iter().copied();
            let state = stock.cards[card];
            if let Some(window) = windows.find(|&window| stock.layouts.is_free(state, window)) {
                self.next = card + 1;
                return Some(Placed {
                    card: u32::try_from(card).ok()?,
                    window,
                });
            }
        }
        None
    }
}

/// The emptiest card of the fullest node that has room, nodes being of so many cards.
pub(super) fn fullest_node(
    stock: &Stock<'_>,
    windows: &[WindowId],
    cards_per_node: usize,
) -> Option<Placed> {
    let free = |card: &StateId| stock.layouts.free(*card);
    let mut best: Option<(u32, Reverse<u32>, usize, WindowId)> = None;
    for (number, node) in stock.cards.chunks(cards_per_node.max(1)).enumerate() {
        // The part that is free, so that a node of fewer cards compares.
        let all: u32 = node.iter().map(free).sum();
        let part = all * 1_000 / u32::try_from(node.len().max(1)).unwrap_or(1);
        for (at, card) in node.iter().enumerate() {
            let mut windows = windows.iter();
            let Some(&window) = windows.find(|w| stock.layouts.is_free(*card, **w)) else {
                continue;
            };
            let number = number * cards_per_node + at;
            let key = (part, Reverse(free(card)), number, window);
            if best.is_none_or(|known| (key.0, key.1, key.2) < (known.0, known.1, known.2)) {
                best = Some(key);
            }
        }
    }
    let (_, _, card, window) = best?;
    Some(Placed {
        card: u32::try_from(card).ok()?,
        window,
    })
}

/// `HAMi` up to 2.9: a card is cut by one of a few templates when it is first used, and keeps it until it is empty.
#[derive(Clone, Debug)]
pub(super) struct Templates {
    all: Vec<Vec<WindowId>>,
    /// The template of each card that is in use.
    chosen: Vec<Option<usize>>,
}

impl Templates {
    pub(super) fn new(layouts: &Layouts, cards: u32) -> Self {
        Self {
            all: templates(layouts),
            chosen: vec![None; cards as usize],
        }
    }

    /// A busy card gives an unused instance of its template with enough memory; an idle one takes the first template
    /// that has one.
    pub(super) fn choose(&mut self, stock: &Stock<'_>, profile: usize) -> Option<Placed> {
        let layouts = stock.layouts;
        let size = u32::from(layouts.offers[profile].size);
        for (card, chosen) in self.chosen.iter_mut().enumerate() {
            let state = stock.cards[card];
            let unused = |template: &Vec<WindowId>| {
                template.iter().copied().find(|&window| {
                    let is_large_enough = layouts.windows[usize::from(window)].count() >= size;
                    is_large_enough && layouts.is_free(state, window)
                })
            };
            let found = if let Some(template) = *chosen {
                unused(&self.all[template]).map(|window| (template, window))
            } else {
                let mut all = self.all.iter().enumerate();
                all.find_map(|(at, template)| Some((at, unused(template)?)))
            };
            if let Some((template, window)) = found {
                *chosen = Some(template);
                return Some(Placed {
                    card: u32::try_from(card).ok()?,
                    window,
                });
            }
        }
        None
    }

    /// Forgets the template of a card that is empty again.
    pub(super) fn reset(&mut self, card: u32) {
        self.chosen[card as usize] = None;
    }
}

/// The geometries that `HAMi` ships: as many as fit of one size, each rest filled with singles.
fn templates(layouts: &Layouts) -> Vec<Vec<WindowId>> {
    let mut sizes: Vec<u8> = layouts.offers.iter().map(|offer| offer.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let profile_of = |size: u8| {
        // The profile with the most compute of that size: 2g.20gb rather than 1g.20gb, 3g.40gb as there are two.
        let offers = layouts
            .offers
            .iter()
            .enumerate()
            .filter(|(_, offer)| offer.size == size);
        offers
            .max_by_key(|(at, offer)| (layouts.placements[*at].len() > 1, offer.compute_slices))
            .map(|(at, _)| at)
    };
    let window = |id: WindowId| layouts.windows[usize::from(id)];
    sizes
        .iter()
        .filter_map(|&size| profile_of(size))
        .map(|profile| {
            let mut template = layouts.placements[profile].clone();
            let taken: Slices = template.iter().map(|id| window(*id)).collect();
            let singles = profile_of(sizes[0]).map(|single| layouts.placements[single].clone());
            let singles = singles.into_iter().flatten();
            template.extend(singles.filter(|id| !window(*id).overlaps(taken)));
            template
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn best_fit_tries_the_starts_that_keep_the_larger_windows() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let preferred = preferred_windows(&layouts, Rule::BestFit);
        let starts = |name: &str| -> Vec<u32> {
            let windows = preferred[layouts.profile(name).unwrap()].iter();
            windows
                .map(|w| layouts.windows[usize::from(*w)].first())
                .collect()
        };
        assert_eq!(starts("1g.10gb"), [6, 4, 5, 0, 1, 2, 3]);
        assert_eq!(
            (starts("1g.20gb"), starts("3g.40gb")),
            (vec![6, 4, 2, 0], vec![4, 0])
        );
    }

    #[test]
    fn the_templates_are_hamis() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let sizes: Vec<Vec<u32>> = templates(&layouts)
            .iter()
            .map(|t| {
                t.iter()
                    .map(|w| layouts.windows[usize::from(*w)].count())
                    .collect()
            })
            .collect();
        assert_eq!(sizes, [vec![1; 7], vec![2, 2, 2, 1], vec![4, 4], vec![8]]);
    }
}
