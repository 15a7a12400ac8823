//! Many cards of one model: one device is placed by a look-up, by any rule.
//!
//! For what is asked offline (simulation, benchmarks), at millions of decisions per second; pods of
//! several devices on real nodes are planned by [`plan`](crate::plan::plan).

use domain::rule::Rule;

use super::{
    baselines::{RoundRobin, Templates, first_fit, fullest_node, preferred_windows},
    moves::{Move, Moves},
    order::{self, Order},
    stock::{Placed, Stock},
};
use crate::{
    layouts::{Layouts, WindowId},
    mix::Mix,
    potential::{Potential, Weighing},
    rule::{fills_empty_cards, many_cards_empty, weighing},
};

/// Tables that follow the mix are built again after so many requests.
const REFRESH_INTERVAL: u32 = 1_000;
/// A rule is tuned again when a part of the mix has moved by so much.
const MAX_DRIFT: f64 = 0.05;
/// Cards of a node, for the rules that look at nodes.
const CARDS_PER_NODE: usize = 8;

/// Finds the weighing that is best for a mix: [`tune`](super::tuning::tune).
pub(crate) type Tuner = fn(&Layouts, &[f64]) -> Weighing;

/// Cards of one model, and the rule by which devices are placed on them.
#[derive(Clone, Debug)]
pub struct Fleet<'a> {
    stock: Stock<'a>,
    rule: Rule,
    weighing: Option<Weighing>,
    mix: Mix,
    since_refresh: u32,
    /// For each profile its windows in the order in which the rule tries them.
    preferred: Vec<Vec<WindowId>>,
    order: Order,
    /// The order while many cards are empty, for the rules that have another one then.
    filling: Option<Order>,
    /// The worth of each state, where the rule has one.
    worth: Vec<f64>,
    /// Tunes the weighing when the mix has moved; `None`: it stays as it is.
    tuner: Option<Tuner>,
    /// The mix that the weighing was tuned for.
    tuned_for: Option<Mix>,
    templates: Templates,
    round_robin: RoundRobin,
    /// Cards of a node, for the rules that look at nodes.
    pub node: usize,
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
        let mix = Mix::unknown(layouts.offers.len());
        let preferred = preferred_windows(layouts, rule);
        let filling = fills_empty_cards(rule).then(|| order::filling(layouts, &preferred, &mix));
        let mut fleet = Self {
            stock: Stock::new(layouts, cards),
            rule,
            weighing,
            mix,
            since_refresh: 0,
            preferred,
            order: vec![],
            filling,
            worth: vec![],
            tuner: None,
            tuned_for: None,
            templates: Templates::new(layouts, cards),
            round_robin: RoundRobin::default(),
            node: CARDS_PER_NODE,
        };
        fleet.refresh();
        fleet
    }

    /// The model of its cards.
    pub fn layouts(&self) -> &'a Layouts {
        self.stock.layouts
    }

    /// Slices that are held, of all cards.
    pub fn held(&self) -> u32 {
        self.stock.held()
    }

    /// Places a device of a profile, if there is room by the rule.
    pub fn place(&mut self, profile: usize) -> Option<Placed> {
        self.mix.count(profile);
        self.since_refresh += 1;
        let follows_mix = self.weighing.is_some_and(Weighing::follows_mix);
        if follows_mix && self.since_refresh >= REFRESH_INTERVAL {
            self.refresh();
        }
        let placed = match self.rule {
            Rule::RoundRobin => self.round_robin.choose(&self.stock, profile),
            Rule::FirstFit => first_fit(&self.stock, &self.order[profile]),
            Rule::HamiTemplates => self.templates.choose(&self.stock, profile),
            Rule::Hami210 => fullest_node(&self.stock, &self.preferred[profile], self.node),
            _ => self.best_state(profile),
        }?;
        self.stock.put(placed, profile);
        Some(placed)
    }

    /// Places a device of a profile for which there is no room by moving one other: where the new one is then, and the
    /// move. Looks for the move that costs least; only for rules that weigh states.
    pub fn place_by_move(&mut self, profile: usize) -> Option<(Placed, Move)> {
        if self.worth.is_empty() {
            return None;
        }
        let moves = Moves {
            stock: &self.stock,
            order: &self.order,
            worth: &self.worth,
        };
        let (placed, relocation) = moves.cheapest(profile)?;
        let other = self.stock.profile(relocation.from)?;
        self.remove(relocation.from);
        self.stock.put(placed, profile);
        self.stock.put(relocation.to, usize::from(other));
        Some((placed, relocation))
    }

    /// Gives a device back.
    pub fn remove(&mut self, placed: Placed) {
        self.stock.remove(placed);
        if self.stock.cards[placed.card as usize] == 0 {
            self.templates.reset(placed.card);
        }
    }

    /// The first card in the best state that any card is in; of states of one rank the one with the first card.
    fn best_state(&self, profile: usize) -> Option<Placed> {
        let order = match &self.filling {
            Some(filling) if many_cards_empty(self.stock.count(), self.stock.empty()) => filling,
            _ => &self.order,
        };
        let mut best: Option<(u32, Placed)> = None;
        for ranked in &order[profile] {
            if best.is_some_and(|(known, _)| known < ranked.rank) {
                break;
            }
            if let Some(&card) = self.stock.members[usize::from(ranked.state)].first()
                && best.is_none_or(|(_, placed)| card < placed.card)
            {
                let window = ranked.window;
                best = Some((ranked.rank, Placed { card, window }));
            }
        }
        best.map(|(_, placed)| placed)
    }

    /// Builds the order of states again, by the present mix.
    fn refresh(&mut self) {
        if let Some(tuner) = self.tuner.filter(|_| self.since_refresh > 0) {
            self.tune(tuner);
        }
        self.since_refresh = 0;
        let layouts = self.layouts();
        if let Some(weighing) = self.weighing {
            self.worth = Potential::new(layouts, weighing, &self.mix).of_states(layouts);
        }
        self.order = order::by_rule(layouts, self.rule, &self.preferred, &self.worth);
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
            .is_none_or(|known| drift(known) > MAX_DRIFT)
        {
            self.weighing = Some(tuner(self.layouts(), &self.mix.parts));
            self.tuned_for = Some(self.mix.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the rule, a device stands on a free window of its size, and goes without a trace; every rule but the
        /// one with templates places it whenever some card has room.
        #[test]
        fn every_rule_keeps_to_the_legal_placements(
            rule in prop::sample::select(&Rule::ALL[..]),
            steps in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), 0u8..3), 1..200),
        ) {
            let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
            let mut fleet = Fleet::new(&layouts, rule, None, 3);
            let mut live: Vec<Placed> = Vec::new();
            for (profile, victim, what) in steps {
                if what == 0 && !live.is_empty() {
                    fleet.remove(live.swap_remove(victim.index(live.len())));
                    continue;
                }
                let room = fleet.stock.cards.iter().any(|state| {
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
