//! Many cards under arrivals and departures, placed by any rule: for benchmarks, for `kubectl tessera simulate`,
//! and for the tuning of the weighing. Nothing outside this folder uses it, but the task of the plugin that tunes.

mod baselines;
pub mod churn;
pub mod fleet;
mod moves;
mod order;
pub mod repack;
pub mod stock;
pub mod tuning;

use domain::rule::Rule;

use crate::layouts::Layouts;

/// So many empty cards of one model, placed by a rule.
pub fn fleet(layouts: &Layouts, rule: Rule, cards: u32) -> fleet::Fleet<'_> {
    let tuner: Option<fleet::Tuner> = (rule == Rule::Tuned).then_some(tuning::tune);
    fleet::Fleet::new(layouts, rule, tuner, cards)
}
