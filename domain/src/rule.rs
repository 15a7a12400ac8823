//! The names of the placement rules, as the configuration and the flags write them; what a rule does is in
//! the crate `placement`.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// A placement rule: ours, and those that it is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Rule {
    /// The least loss of potential, weighed by the mix that was seen; without waste while many cards are empty: the default.
    #[default]
    Demand,
    /// The same, with the weighing that a simulation of the mix finds best.
    Tuned,
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
    /// `HAMi` after 2.10 (pull request 2855): fullest card, longest free run left, most legal placements left.
    HamiMaster,
    /// Minimum fragmentation increment, only profiles that fit in the free slices (arXiv 2511.18906, literal).
    Mfi,
    /// The same over all profiles.
    MfiAll,
    /// Fragmentation gradient descent on MIG masks.
    Fgd,
}

impl Rule {
    /// Every rule, ours first.
    pub const ALL: [Self; 13] = [
        Self::Demand,
        Self::Tuned,
        Self::Fixed,
        Self::RoundRobin,
        Self::FirstFit,
        Self::BestFit,
        Self::HamiTemplates,
        Self::Hami210,
        Self::Hami210Binpack,
        Self::HamiMaster,
        Self::Mfi,
        Self::MfiAll,
        Self::Fgd,
    ];

    /// Whether the scheduler cannot place by it: it is there to be compared with in simulations.
    pub fn is_simulation_only(self) -> bool {
        !matches!(
            self,
            Self::Demand | Self::Tuned | Self::Fixed | Self::Mfi | Self::MfiAll | Self::Fgd
        )
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Demand => "demand",
            Self::Tuned => "tuned",
            Self::Fixed => "fixed",
            Self::RoundRobin => "round-robin",
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::HamiTemplates => "hami-2.9",
            Self::Hami210 => "hami-2.10",
            Self::Hami210Binpack => "hami-2.10-binpack",
            Self::HamiMaster => "hami-master",
            Self::Mfi => "mfi",
            Self::MfiAll => "mfi-all",
            Self::Fgd => "fgd",
        })
    }
}

/// A text that is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a placement rule; write one of: {}", Rule::ALL.map(|rule| rule.to_string()).join(", "))]
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

impl TryFrom<String> for Rule {
    type Error = UnknownRule;

    fn try_from(text: String) -> Result<Self, UnknownRule> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed() {
        for rule in Rule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        let error = "best".parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains("best-fit"), "{error}");
    }
}
