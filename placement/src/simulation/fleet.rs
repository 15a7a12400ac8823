//! Many cards of one model, by the state they are in: one device is placed by a look-up, by any rule.
//!
//! For what is asked offline (simulation, benchmarks), at millions of decisions a second; pods of
//! several devices on real nodes are planned by [`plan`](crate::plan::plan).

use std::collections::BTreeSet;

use crate::{
    layouts::{Layouts, StateId, WindowId},
    mix::Mix,
    potential::{Potential, Weighing, freedom, placements},
    rule::{fills_empty_cards, many_cards_empty, weighing},
};
use domain::{rule::Rule, slices::Slices};

/// Tables that follow the mix are made again after so many requests.
const REFRESH: u32 = 1_000;
/// A rule is tuned again when a part of the mix has moved by so much.
const DRIFT: f64 = 0.05;

/// Finds the weighing that is best for a mix: [`tune`](super::tuning::tune).
pub(crate) type Tuner = fn(&Layouts, &[f64]) -> Weighing;

/// For each profile the states where it fits, best first.
type Order = Vec<Vec<Step>>;

/// A state where a profile fits. States of one rank are as good as each other.
#[derive(Clone, Copy, Debug)]
struct Step {
    rank: u32,
    state: StateId,
    window: WindowId,
}

/// Where a device was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placed {
    /// Index of the card.
    pub card: u32,
    /// The window on it.
    pub window: WindowId,
}

/// A device that was moved to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it was.
    pub from: Placed,
    /// Where it is.
    pub to: Placed,
}

/// Cards of one model.
#[derive(Clone, Debug)]
pub struct Fleet<'a> {
    layouts: &'a Layouts,
    rule: Rule,
    weighing: Option<Weighing>,
    mix: Mix,
    since_refresh: u32,
    cards: Vec<StateId>,
    /// For each state the cards that are in it.
    members: Vec<BTreeSet<u32>>,
    order: Order,
    /// The order while many cards are empty, for the rules that have another one then.
    filling: Option<Order>,
    /// The worth of each state, where the rule has one.
    worth: Vec<f64>,
    /// The profile on each window of each card, where something is.
    profiles: Vec<Option<u8>>,
    templates: Vec<Vec<WindowId>>,
    /// For each card its template, for the rule that has them.
    template: Vec<Option<usize>>,
    /// For each profile its windows in the order in which the rule tries them.
    preferred: Vec<Vec<WindowId>>,
    /// Cards of a node, for the rules that look at nodes.
    pub node: usize,
    /// Tunes the weighing when the mix has moved; `None`: it stays as it is.
    tuner: Option<Tuner>,
    /// The mix that the weighing was tuned for.
    tuned_for: Option<Mix>,
    next: usize,
    next_state: Vec<Option<StateId>>,
}

impl<'a> Fleet<'a> {
    /// So many empty cards, placed by a rule; a tuner tunes its weighing to the mix.
    pub(crate) fn new(layouts: &'a Layouts, rule: Rule, tuner: Option<Tuner>, cards: u32) -> Self {
        let mut fleet = Self::build(layouts, rule, weighing(rule), cards);
        fleet.tuner = tuner;
        fleet
    }

    /// So many empty cards, placed by the loss of worth in this weighing.
    pub(crate) fn weighed(layouts: &'a Layouts, weighing: Weighing, cards: u32) -> Self {
        Self::build(layouts, Rule::Demand, Some(weighing), cards)
    }

    fn build(layouts: &'a Layouts, rule: Rule, weighing: Option<Weighing>, cards: u32) -> Self {
        let mut members = vec![BTreeSet::new(); layouts.states.len()];
        members[0] = (0..cards).collect();
        let windows = layouts.windows.len();
        let ids = layouts
            .ids()
            .flat_map(|state| (0..windows).map(move |window| (state, window)));
        let mut fleet = Self {
            layouts,
            rule,
            weighing,
            mix: Mix::unknown(layouts.offers.len()),
            since_refresh: 0,
            cards: vec![0; cards as usize],
            members,
            order: vec![],
            filling: None,
            worth: vec![],
            profiles: vec![None; cards as usize * windows],
            templates: templates(layouts),
            template: vec![None; cards as usize],
            preferred: vec![],
            node: 8,
            tuner: None,
            tuned_for: None,
            next: 0,
            next_state: ids
                .map(|(state, window)| layouts.toggled(state, u8::try_from(window).ok()?))
                .collect(),
        };
        fleet.preferred = (0..layouts.offers.len())
            .map(|profile| fleet.by_preference(profile))
            .collect();
        if fills_empty_cards(rule) {
            let filling = Potential::new(layouts, Weighing::Filling, &fleet.mix);
            let held: Vec<Vec<Slices>> = layouts
                .ids()
                .map(|state| layouts.windows_of(state).collect())
                .collect();
            fleet.filling = Some(fleet.ordered(|state, window| {
                filling.loss(&held[usize::from(state)])(layouts.windows[usize::from(window)])
            }));
        }
        fleet.refresh();
        fleet
    }

    /// Places a device of a profile, if there is room by the rule.
    pub fn place(&mut self, profile: usize) -> Option<Placed> {
        self.mix.saw(profile);
        self.since_refresh += 1;
        if self.weighing.is_some_and(Weighing::follows_mix) && self.since_refresh >= REFRESH {
            self.refresh();
        }
        let placed = match self.rule {
            Rule::RoundRobin => self.round_robin(profile),
            Rule::FirstFit => self.first_fit(profile),
            Rule::HamiTemplates => self.by_template(profile),
            Rule::Hami210 => self.fullest_node(profile),
            _ => self.best_state(profile),
        }?;
        self.put(placed, profile);
        Some(placed)
    }

    /// Places a device of a profile for which there is no room by moving one other: where both are then, the
    /// other's old place first. Looks for the move that costs least; only for rules that weigh states.
    pub fn place_by_move(&mut self, profile: usize) -> Option<(Placed, Move)> {
        if self.worth.is_empty() {
            return None;
        }
        let mut best: Option<(f64, Placed, Move)> = None;
        for (state, members) in self.layouts.ids().zip(&self.members) {
            for away in 0..self.windows() {
                let Some(without) = self.layouts.toggled(state, away) else {
                    continue;
                };
                // Cards in one state differ in the profiles that stand on a window.
                let mut tried = [false; u8::MAX as usize + 1];
                for &card in members {
                    let Some(moved) = self.profiles[self.at(card, away)] else {
                        break;
                    };
                    if std::mem::replace(&mut tried[usize::from(moved)], true) {
                        continue;
                    }
                    let from = Placed { card, window: away };
                    for &window in &self.layouts.placements[profile] {
                        if !self.layouts.is_free(without, window) {
                            continue;
                        }
                        let with = self.layouts.toggled(without, window).unwrap_or(without);
                        let own = self.worth[usize::from(state)] - self.worth[usize::from(with)];
                        for (to, more) in self.targets(usize::from(moved), card, with) {
                            let cost = own + more;
                            if best.as_ref().is_none_or(|(known, ..)| cost < *known) {
                                best = Some((cost, Placed { card, window }, Move { from, to }));
                            }
                        }
                    }
                }
            }
        }
        let (_, placed, moved) = best?;
        let other = self.profiles[self.at(moved.from.card, moved.from.window)]?;
        self.remove(moved.from);
        self.put(placed, profile);
        self.put(moved.to, usize::from(other));
        Some((placed, moved))
    }

    /// Where a device could move to and what it costs: the best other card, and the same card in its new state.
    fn targets(
        &self,
        profile: usize,
        card: u32,
        with: StateId,
    ) -> impl Iterator<Item = (Placed, f64)> {
        let elsewhere = self.order[profile].iter().find_map(|step| {
            let members = &self.members[usize::from(step.state)];
            let other = members.iter().copied().find(|member| *member != card)?;
            let window = step.window;
            let then = self.layouts.toggled(step.state, window)?;
            let cost = self.worth[usize::from(step.state)] - self.worth[usize::from(then)];
            Some((
                Placed {
                    card: other,
                    window,
                },
                cost,
            ))
        });
        let windows = self.layouts.placements[profile].iter();
        let here = windows
            .filter(move |window| self.layouts.is_free(with, **window))
            .filter_map(move |&window| {
                let then = self.layouts.toggled(with, window)?;
                let cost = self.worth[usize::from(with)] - self.worth[usize::from(then)];
                Some((Placed { card, window }, cost))
            });
        elsewhere.into_iter().chain(here)
    }

    /// Gives a device back.
    pub fn remove(&mut self, placed: Placed) {
        let at = self.at(placed.card, placed.window);
        self.profiles[at] = None;
        self.toggle(placed);
        if self.cards[placed.card as usize] == 0 {
            self.template[placed.card as usize] = None;
        }
    }

    fn put(&mut self, placed: Placed, profile: usize) {
        let at = self.at(placed.card, placed.window);
        self.profiles[at] = u8::try_from(profile).ok();
        self.toggle(placed);
    }

    fn windows(&self) -> WindowId {
        WindowId::try_from(self.layouts.windows.len()).unwrap_or(WindowId::MAX)
    }

    fn at(&self, card: u32, window: WindowId) -> usize {
        card as usize * self.layouts.windows.len() + usize::from(window)
    }

    /// The model of its cards.
    pub fn layouts(&self) -> &'a Layouts {
        self.layouts
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
        let empty = u32::try_from(self.members[0].len()).unwrap_or(u32::MAX);
        let cards = u32::try_from(self.cards.len()).unwrap_or(u32::MAX);
        let order = match &self.filling {
            Some(filling) if many_cards_empty(cards, empty) => filling,
            _ => &self.order,
        };
        let mut best: Option<(u32, Placed)> = None;
        for step in &order[profile] {
            if best.is_some_and(|(known, _)| known < step.rank) {
                break;
            }
            if let Some(&card) = self.members[usize::from(step.state)].first()
                && best.is_none_or(|(_, placed)| card < placed.card)
            {
                let window = step.window;
                best = Some((step.rank, Placed { card, window }));
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
            .filter_map(|step| {
                let members = &self.members[usize::from(step.state)];
                Some((*members.first()?, step.window))
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
        let windows = &self.preferred[profile];
        for (number, node) in self.cards.chunks(self.node.max(1)).enumerate() {
            // The part that is free, so that a node of fewer cards compares.
            let all: u32 = node.iter().map(free).sum();
            let part = all * 1_000 / u32::try_from(node.len().max(1)).unwrap_or(1);
            for (at, card) in node.iter().enumerate() {
                let Some(&window) = windows.iter().find(|w| self.layouts.is_free(*card, **w))
                else {
                    continue;
                };
                let key = (
                    part,
                    std::cmp::Reverse(free(card)),
                    number * self.node + at,
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
    fn by_preference(&self, profile: usize) -> Vec<WindowId> {
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
        let templates = &self.templates;
        for card in 0..self.cards.len() {
            let state = self.cards[card];
            let usable = |template: &Vec<WindowId>| {
                template.iter().copied().find(|&window| {
                    let large_enough =
                        self.layouts.windows[usize::from(window)].count() >= u32::from(size);
                    large_enough && self.layouts.is_free(state, window)
                })
            };
            let found = match self.template[card] {
                Some(template) => usable(&templates[template]).map(|window| (template, window)),
                None => templates
                    .iter()
                    .enumerate()
                    .find_map(|(at, template)| Some((at, usable(template)?))),
            };
            if let Some((template, window)) = found {
                self.template[card] = Some(template);
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
        if let Some(tuner) = self.tuner.filter(|_| self.since_refresh > 0) {
            self.tune(tuner);
        }
        self.since_refresh = 0;
        let layouts = self.layouts;
        if let Some(weighing) = self.weighing {
            self.worth = Potential::new(layouts, weighing, &self.mix).of_states(layouts);
        }
        let (rule, worth) = (self.rule, &self.worth);
        let placements = placements(layouts);
        self.order = self.ordered(|state, window| {
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
        });
    }

    /// Chooses the weighing anew where the mix has moved.
    fn tune(&mut self, tuner: Tuner) {
        let drift = |known: &Mix| {
            let parts = known.parts.iter().zip(&self.mix.parts);
            parts.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        if self
            .tuned_for
            .as_ref()
            .is_none_or(|known| drift(known) > DRIFT)
        {
            self.weighing = Some(tuner(self.layouts, &self.mix.parts));
            self.tuned_for = Some(self.mix.clone());
        }
    }

    /// For each profile the states where it fits, by what its best window costs there.
    fn ordered(&self, cost: impl Fn(StateId, WindowId) -> f64) -> Order {
        let layouts = self.layouts;
        self.preferred
            .iter()
            .map(|windows| {
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
                    Step {
                        rank,
                        state,
                        window,
                    }
                });
                ranked.collect()
            })
            .collect()
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
    sizes
        .iter()
        .filter_map(|&size| profile_of(size))
        .map(|profile| {
            let mut template = layouts.placements[profile].clone();
            let taken: Slices = template
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
    use domain::fixtures;
    use proptest::prelude::*;

    #[test]
    fn best_fit_tries_the_starts_that_keep_the_larger_windows() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let fleet = Fleet::new(&layouts, Rule::BestFit, None, 1);
        let starts = |name: &str| -> Vec<u32> {
            let windows = &fleet.preferred[layouts.profile(name).unwrap()];
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
            let mut fleet = crate::simulation::fleet(&layouts, rule, 3);
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
