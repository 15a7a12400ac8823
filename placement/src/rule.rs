//! What each placement rule weighs the states of a card by. A new rule is added here, with its name in `domain::rule`.

use domain::rule::Rule;

use crate::potential::Weighing;

/// What a rule weighs states by; `None` for a rule that only simulations know.
pub fn weighing(rule: Rule) -> Option<Weighing> {
    Some(match rule {
        Rule::Demand | Rule::Tuned => Weighing::default(),
        Rule::Fixed => Weighing::Fixed,
        Rule::Mfi => Weighing::Mfi,
        Rule::MfiAll => Weighing::MfiAll,
        Rule::Fgd => Weighing::Fgd,
        _ => return None,
    })
}

/// Whether a rule uses [`Weighing::Filling`] while many cards are empty.
pub fn fills_empty_cards(rule: Rule) -> bool {
    matches!(rule, Rule::Demand | Rule::Tuned)
}

/// Whether so many cards are empty that no slice of the others need be wasted: a fifth of them, and at least 16.
///
/// Of a few cards, chance empties some at any load.
pub fn many_cards_empty(cards: u32, empty: u32) -> bool {
    empty >= 16 && empty * 5 >= cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_can_place_by_exactly_the_rules_that_weigh_states() {
        for rule in Rule::ALL {
            assert_eq!(
                weighing(rule).is_some(),
                !rule.is_simulation_only(),
                "{rule}"
            );
        }
    }
}
