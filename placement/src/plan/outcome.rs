//! How a node would serve a demand, and how good that is among other nodes.

use domain::{
    claim::Claim,
    demand::{Demand, Policy},
    mode::VgpuMode,
};

/// How a node would serve a demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The devices of each container.
    pub claim: Claim,
    /// The mode of all of them.
    pub mode: VgpuMode,
    /// How well the mode suits the request.
    pub suitability: Suitability,
    /// Devices of a larger memory size than the smallest sufficient one, because no GPU has room for that.
    pub larger: u32,
    /// Future capacity that the plan destroys, in GPUs.
    pub loss: f64,
    /// Whether a GPU must change its mode first, which takes a while.
    pub changes_mode: bool,
    /// The part of the node's GPUs that is in use already, 0 to 1.
    pub used: f64,
}

/// How well a mode suits a request, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suitability {
    /// Isolated, and the pod asked for at least half of each instance.
    CloseInstance,
    /// Not isolated, but nothing is wasted.
    Share,
    /// Isolated, but the pod asked for less than half of an instance.
    LooseInstance,
}

/// What plans on several nodes are compared by: the lower one is better. Of equal plans any will do.
///
/// The fields are in the order in which they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    changes_mode: bool,
    suitability: Suitability,
    larger: u32,
    /// The pod's wish for fuller or emptier nodes.
    wish: i64,
    loss: i64,
    /// The webhook hinted at another node, or at none.
    is_not_hinted: bool,
}

impl Plan {
    /// How good the plan is among those of other nodes.
    pub fn preference(&self, node: &str, demand: &Demand) -> Preference {
        let wish = match demand.node_policy {
            Some(Policy::Binpack) => -self.used,
            Some(Policy::Spread) => self.used,
            None => 0.0,
        };
        Preference {
            changes_mode: self.changes_mode,
            suitability: self.suitability,
            larger: self.larger,
            wish: without_rounding_noise(wish),
            loss: without_rounding_noise(self.loss),
            is_not_hinted: demand.hint.as_deref() != Some(node),
        }
    }
}

/// Sums of the same parts in another order differ in the last digits; they are the same here.
#[allow(
    clippy::cast_possible_truncation,
    reason = "losses are a few thousand GPUs at most"
)]
fn without_rounding_noise(value: f64) -> i64 {
    (value * 1e12).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn what_counts_more_decides_first() {
        let plan = Plan {
            claim: Claim { containers: vec![] },
            mode: VgpuMode::Mig,
            suitability: Suitability::CloseInstance,
            larger: 0,
            loss: 0.5,
            changes_mode: false,
            used: 0.25,
        };
        let demand = Demand {
            node_policy: Some(Policy::Spread),
            hint: Some("hinted".to_owned()),
            ..fixtures::demand(1)
        };
        let best = plan.preference("hinted", &demand);
        let worse = [
            plan.preference("other", &demand),
            Plan {
                loss: 0.6,
                ..plan.clone()
            }
            .preference("hinted", &demand),
            Plan {
                used: 0.3,
                loss: 0.0,
                ..plan.clone()
            }
            .preference("hinted", &demand),
            Plan {
                larger: 1,
                used: 0.0,
                ..plan.clone()
            }
            .preference("hinted", &demand),
            Plan {
                suitability: Suitability::Share,
                larger: 0,
                used: 0.0,
                ..plan.clone()
            }
            .preference("hinted", &demand),
            Plan {
                changes_mode: true,
                used: 0.0,
                ..plan.clone()
            }
            .preference("hinted", &demand),
        ];
        assert!(worse.iter().all(|other| best < *other));
        assert!(worse.is_sorted(), "{worse:?}");
        let noise = Plan {
            loss: 0.1 + 0.2 + 0.2,
            ..plan
        };
        assert_eq!(noise.preference("hinted", &demand), best);
    }
}
