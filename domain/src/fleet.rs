//! Many cards of one model, by the state they are in: one device is placed by a look-up, by any rule.
//!
//! For what is asked offline (simulation, benchmarks), at millions of decisions a second; pods of
//! several devices on real nodes are planned by [`plan`](crate::plan).

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::{Layouts, Mix, Parameters, Potential, StateId, Weighing, WindowId};

/// Tables that follow the mix are made again after so many requests.
const REFRESH: u32 = 1_000;
/// Cards of a node, for the rules that look at nodes.
const NODE: usize = 8;

/// A rule of placement: ours, and those that it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The least loss of potential, weighed by the mix that was seen: the default.
    Demand,
    /// The least loss of potential, weighed by hand.
    Fixed,
    /// One card after the other.
    RoundRobin,
    /// The first card that has room, at its lowest start.
    FirstFit,
    /// The card with the least free slices, at the best start of a fixed order.
    BestFit,
    /// `HAMi` up to 2.9: templates, first fit.
    HamiTemplates,
    /// `HAMi` 2.10 as shipped: fullest node, emptiest card.
    Hami210,
    /// `HAMi` 2.10 with the fullest card of all.
    Hami210Binpack,
    /// Minimum fragmentation increment, only profiles that fit in the free slices (arXiv 2511.18906, literal).
    Mfi,
    /// The same over all profiles.
    MfiAll,
    /// Fragmentation gradient descent on MIG masks.
    Fgd,
}

impl Rule {
    /// Every rule, ours first.
    pub const ALL: [Self; 11] = [
        Self::Demand,
        Self::Fixed,
        Self::RoundRobin,
        Self::FirstFit,
        Self::BestFit,
        Self::HamiTemplates,
        Self::Hami210,
        Self::Hami210Binpack,
        Self::Mfi,
        Self::MfiAll,
        Self::Fgd,
    ];

    fn follows_mix(self) -> bool {
        matches!(self, Self::Demand | Self::Fgd)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Demand => "demand",
            Self::Fixed => "fixed",
            Self::RoundRobin => "round-robin",
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::HamiTemplates => "hami-2.9",
            Self::Hami210 => "hami-2.10",
            Self::Hami210Binpack => "hami-2.10-binpack",
            Self::Mfi => "mfi",
            Self::MfiAll => "mfi-all",
            Self::Fgd => "fgd",
        })
    }
}

/// A text that names no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no rule of placement; write one of: {}", Rule::ALL.map(|rule| rule.to_string()).join(", "))]
pub struct UnknownRule {
    /// As written.
    pub text: String,
}

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        let found = Self::ALL.into_iter().find(|rule| rule.to_string() == text);
        found.ok_or_else(|| UnknownRule {
            text: text.to_owned(),
        })
    }
}

/// Where a device was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index of the card.
    pub card: u32,
    /// The window on it.
    pub window: WindowId,
}

/// Cards of one model.
#[derive(Clone, Debug)]
pub struct Fleet<'a> {
    layouts: &'a Layouts,
    rule: Rule,
    parameters: Parameters,
    mix: Mix,
    since_refresh: u32,
    cards: Vec<StateId>,
    /// For each state the cards that are in it.
    members: Vec<BTreeSet<u32>>,
    /// For each profile the states where it fits, best first: rank, state, window. States of one rank are as good as each other.
    order: Vec<Vec<(u32, StateId, WindowId)>>,
    /// For each card its template, for the rule that has them.
    templates: Vec<Option<usize>>,
    next: usize,
    next_state: Vec<Option<StateId>>,
}

impl<'a> Fleet<'a> {
    /// So many empty cards.
    pub fn new(layouts: &'a Layouts, rule: Rule, cards: u32) -> Self {
        Self::tuned(layouts, rule, cards, Parameters::default())
    }

    /// So many empty cards, with other constants for the rule `demand`.
    pub fn tuned(layouts: &'a Layouts, rule: Rule, cards: u32, parameters: Parameters) -> Self {
        let mut members = vec![BTreeSet::new(); layouts.states.len()];
        members[0] = (0..cards).collect();
        let windows = layouts.windows.len();
        let ids = layouts
            .ids()
            .flat_map(|state| (0..windows).map(move |window| (state, window)));
        let mut fleet = Self {
            layouts,
            rule,
            parameters,
            mix: Mix::unknown(layouts.offers.len()),
            since_refresh: 0,
            cards: vec![0; cards as usize],
            members,
            order: vec![],
            templates: vec![None; cards as usize],
            next: 0,
            next_state: ids
                .map(|(state, window)| layouts.toggled(state, u8::try_from(window).ok()?))
                .collect(),
        };
        fleet.refresh();
        fleet
    }

    /// Places a device of a profile, if there is room by the rule.
    pub fn place(&mut self, profile: usize) -> Option<Placed> {
        self.mix.saw(profile);
        self.since_refresh += 1;
        if self.rule.follows_mix() && self.since_refresh >= REFRESH {
            self.refresh();
        }
        let placed = match self.rule {
            Rule::RoundRobin => self.round_robin(profile),
            Rule::FirstFit => self.first_fit(profile),
            Rule::HamiTemplates => self.by_template(profile),
            Rule::Hami210 => self.fullest_node(profile),
            _ => self.best_state(profile),
        }?;
        self.toggle(placed);
        Some(placed)
    }

    /// Gives a device back.
    pub fn remove(&mut self, placed: Placed) {
        self.toggle(placed);
        if self.cards[placed.card as usize] == 0 {
            self.templates[placed.card as usize] = None;
        }
    }

    /// Slices that are held, of all cards.
    pub fn held(&self) -> u32 {
        let states = self.layouts.ids().zip(&self.members);
        states
            .map(|(state, members)| {
                self.layouts.held(state).count() * u32::try_from(members.len()).unwrap_or(0)
            })
            .sum()
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

    fn best_state(&self, profile: usize) -> Option<Placed> {
        let mut best: Option<(u32, Placed)> = None;
        for &(rank, state, window) in &self.order[profile] {
            if best.is_some_and(|(known, _)| known < rank) {
                break;
            }
            if let Some(&card) = self.members[usize::from(state)].first()
                && best.is_none_or(|(_, placed)| card < placed.card)
            {
                best = Some((rank, Placed { card, window }));
            }
        }
        best.map(|(_, placed)| placed)
    }

    /// The first free window of a profile on a card, by ascending start.
    fn first_window(&self, card: usize, profile: usize) -> Option<WindowId> {
        let mut windows = self.layouts.placements[profile].iter().copied();
        windows.find(|&window| self.layouts.is_free(self.cards[card], window))
    }

    fn first_fit(&self, profile: usize) -> Option<Placed> {
        // The order has every state where the profile fits.
        let states = self.order[profile].iter();
        let (card, window) = states
            .filter_map(|&(_, state, window)| {
                Some((*self.members[usize::from(state)].first()?, window))
            })
            .min()?;
        Some(Placed { card, window })
    }

    fn round_robin(&mut self, profile: usize) -> Option<Placed> {
        for step in 0..self.cards.len() {
            let card = (self.next + step) % self.cards.len();
            if let Some(window) = self.first_window(card, profile) {
                self.next = card + 1;
                return Some(Placed {
                    card: u32::try_from(card).ok()?,
                    window,
                });
            }
        }
        None
    }

    fn fullest_node(&self, profile: usize) -> Option<Placed> {
        let free = |card: &StateId| self.layouts.free(*card);
        let mut best: Option<(u32, std::cmp::Reverse<u32>, usize, WindowId)> = None;
        for (number, node) in self.cards.chunks(NODE).enumerate() {
            // The part that is free, so that a node of fewer cards compares.
            let all: u32 = node.iter().map(free).sum();
            let part = all * 1_000 / u32::try_from(node.len().max(1)).unwrap_or(1);
            for (at, card) in node.iter().enumerate() {
                let windows = self.preferred(profile);
                let Some(&window) = windows.iter().find(|w| self.layouts.is_free(*card, **w))
                else {
                    continue;
                };
                let key = (
                    part,
                    std::cmp::Reverse(free(card)),
                    number * NODE + at,
                    window,
                );
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

    /// Windows of a profile in the order in which the rule tries them on a card.
    fn preferred(&self, profile: usize) -> Vec<WindowId> {
        let windows = &self.layouts.placements[profile];
        let offer = &self.layouts.offers[profile];
        let descending = || windows.iter().rev().copied().collect();
        let compute = offer.compute_slices;
        match self.rule {
            // HAMi 2.10: 1g and 3g from the highest start, the others from the lowest.
            Rule::Hami210 | Rule::Hami210Binpack if compute == 3 => descending(),
            Rule::Hami210 | Rule::Hami210Binpack if compute == 1 && offer.size == 1 => descending(),
            Rule::BestFit if offer.size > 1 => descending(),
            Rule::BestFit => {
                // 6, 4, 5, 0, 1, 2, 3: what keeps the larger windows.
                let half = u8::try_from(windows.len().div_ceil(2)).unwrap_or(0);
                let mut order: Vec<WindowId> = windows.clone();
                order.sort_by_key(|window| {
                    let at = windows.iter().position(|w| w == window).unwrap_or(0);
                    let at = u8::try_from(at).unwrap_or(0);
                    (
                        at < half,
                        at + 1 != u8::try_from(windows.len()).unwrap_or(0),
                        at,
                    )
                });
                order
            }
            _ => windows.clone(),
        }
    }

    /// A busy card gives an unused instance of its template with enough memory; an idle one takes the first template that has one.
    fn by_template(&mut self, profile: usize) -> Option<Placed> {
        let size = self.layouts.offers[profile].size;
        let templates = templates(self.layouts);
        for card in 0..self.cards.len() {
            let state = self.cards[card];
            let usable = |template: &Vec<WindowId>| {
                template.iter().copied().find(|&window| {
                    let large_enough =
                        self.layouts.windows[usize::from(window)].count() >= u32::from(size);
                    large_enough && self.layouts.is_free(state, window)
                })
            };
            let found = match self.templates[card] {
                Some(template) => usable(&templates[template]).map(|window| (template, window)),
                None => templates
                    .iter()
                    .enumerate()
                    .find_map(|(at, template)| Some((at, usable(template)?))),
            };
            if let Some((template, window)) = found {
                self.templates[card] = Some(template);
                return Some(Placed {
                    card: u32::try_from(card).ok()?,
                    window,
                });
            }
        }
        None
    }

    /// Makes the order of states again, by the mix of now.
    fn refresh(&mut self) {
        self.since_refresh = 0;
        let cost = self.costs();
        let layouts = self.layouts;
        self.order = (0..layouts.offers.len())
            .map(|profile| {
                let windows = self.preferred(profile);
                let mut order: Vec<(f64, usize, StateId, WindowId)> = layouts
                    .ids()
                    .filter_map(|state| {
                        let free = windows
                            .iter()
                            .enumerate()
                            .filter(|(_, w)| layouts.is_free(state, **w));
                        let priced =
                            free.map(|(at, &window)| (cost(state, window), at, state, window));
                        priced.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
                    })
                    .collect();
                order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
                let mut rank = 0;
                let mut last: Option<(f64, usize)> = None;
                let ranked = order.into_iter().map(|(cost, at, state, window)| {
                    // Costs that differ by rounding alone are the same.
                    let same = last.is_some_and(|(c, a)| (cost - c).abs() < 1e-12 && a == at);
                    rank += u32::from(!same);
                    last = Some((cost, at));
                    (rank, state, window)
                });
                ranked.collect()
            })
            .collect();
    }

    /// What a window costs in a state, by the rule; lower is better.
    fn costs(&self) -> impl Fn(StateId, WindowId) -> f64 + use<'a> {
        let layouts = self.layouts;
        let worth: Vec<f64> = match self.rule {
            Rule::Demand => {
                Potential::by_demand(layouts, &self.mix, &self.parameters).of_states(layouts)
            }
            Rule::Fixed => Potential::new(layouts, Weighing::Fixed, &self.mix).of_states(layouts),
            Rule::Mfi => fragmentation(layouts, true),
            Rule::MfiAll => fragmentation(layouts, false),
            Rule::Fgd => unusable(layouts, &self.mix),
            _ => vec![],
        };
        let rule = self.rule;
        move |state, window| match rule {
            // Where the state decides alone, the start order chooses the window.
            Rule::BestFit | Rule::Hami210Binpack => f64::from(layouts.free(state)),
            _ if worth.is_empty() => 0.0,
            _ => {
                let after = layouts.toggled(state, window).unwrap_or(state);
                worth[usize::from(state)] - worth[usize::from(after)]
            }
        }
    }
}

/// Minus the fragmentation F of each state: the summed sizes of the placements that something stands in the way of.
fn fragmentation(layouts: &Layouts, only_fitting: bool) -> Vec<f64> {
    layouts
        .ids()
        .map(|state| {
            let profiles = layouts.offers.iter().zip(&layouts.placements);
            let counted = profiles
                .filter(|(offer, _)| !only_fitting || u32::from(offer.size) <= layouts.free(state));
            let blocked = counted.map(|(offer, windows)| {
                let blocked = windows
                    .iter()
                    .filter(|window| !layouts.is_free(state, **window));
                u32::from(offer.size) * u32::try_from(blocked.count()).unwrap_or(0)
            });
            -f64::from(blocked.sum::<u32>())
        })
        .collect()
}

/// Minus the free slices of each state that the expected request cannot use.
fn unusable(layouts: &Layouts, mix: &Mix) -> Vec<f64> {
    layouts
        .ids()
        .map(|state| {
            let profiles = layouts.placements.iter().zip(&mix.parts);
            let none = profiles
                .filter(|(windows, _)| {
                    !windows.iter().any(|window| layouts.is_free(state, *window))
                })
                .map(|(_, part)| part)
                .sum::<f64>();
            -f64::from(layouts.free(state)) * none
        })
        .collect()
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
    sizes
        .iter()
        .filter_map(|&size| profile_of(size))
        .map(|profile| {
            let mut template = layouts.placements[profile].clone();
            let taken: crate::Slices = template
                .iter()
                .map(|w| layouts.windows[usize::from(*w)])
                .collect();
            let singles = profile_of(sizes[0]).map(|single| layouts.placements[single].clone());
            for window in singles.into_iter().flatten() {
                if !layouts.windows[usize::from(window)].overlaps(taken) {
                    template.push(window);
                }
            }
            template
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use proptest::prelude::*;

    #[test]
    fn what_is_printed_is_parsed() {
        for rule in Rule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        let error = "best".parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains("best-fit"), "{error}");
    }

    #[test]
    fn best_fit_tries_the_starts_that_keep_the_larger_windows() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let fleet = Fleet::new(&layouts, Rule::BestFit, 1);
        let starts = |name: &str| -> Vec<u32> {
            let windows = fleet.preferred(layouts.profile(name).unwrap());
            windows
                .iter()
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

    proptest! {
        /// Whatever the rule, a device stands on a free window of its size, and goes without a trace; every rule but the
        /// one with templates places it whenever some card has room.
        #[test]
        fn every_rule_keeps_to_the_legal_placements(
            rule in prop::sample::select(&Rule::ALL[..]),
            steps in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), 0u8..3), 1..200),
        ) {
            let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
            let mut fleet = Fleet::new(&layouts, rule, 3);
            let mut live: Vec<Placed> = Vec::new();
            for (profile, victim, what) in steps {
                if what == 0 && !live.is_empty() {
                    fleet.remove(live.swap_remove(victim.index(live.len())));
                    continue;
                }
                let room = fleet.cards.iter().any(|state| {
                    layouts.placements[profile].iter().any(|w| layouts.is_free(*state, *w))
                });
                match fleet.place(profile) {
                    Some(placed) => {
                        let slices = layouts.windows[usize::from(placed.window)];
                        prop_assert!(rule == Rule::HamiTemplates || layouts.placements[profile].contains(&placed.window));
                        let collides = live.iter().any(|other| {
                            other.card == placed.card
                                && layouts.windows[usize::from(other.window)].overlaps(slices)
                        });
                        prop_assert!(!collides);
                        live.push(placed);
                    }
                    None => prop_assert!(!room || rule == Rule::HamiTemplates),
                }
            }
            let held: u32 = live.iter().map(|p| layouts.windows[usize::from(p.window)].count()).sum();
            prop_assert_eq!(fleet.held(), held);
        }
    }
}
