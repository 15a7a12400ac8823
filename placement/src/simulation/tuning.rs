//! Self-tuning: which weighing is best for a mix, by simulation.

use crate::{
    layouts::Layouts,
    potential::{Parameters, Weighing},
    simulation::churn,
    simulation::fleet::Fleet,
};

/// Cards of a simulated fleet.
const CARDS: u32 = 64;
/// Pods of a run.
const ARRIVALS: u32 = 64 * 60;
/// Runs per weighing.
const RUNS: u64 = 8;
/// The load at which packing matters: all slices are in demand.
const LOAD: f64 = 1.0;

/// The weighings that are tried, the default first.
fn portfolio() -> Vec<Weighing> {
    let default = Parameters::default();
    let mut all = vec![
        Weighing::Demand(default),
        Weighing::Fixed,
        Weighing::Fgd,
        Weighing::Mfi,
        Weighing::MfiAll,
    ];
    for alpha in [1.0, 2.0, 4.5] {
        for (beta, credit) in [(0.45, 0.02), (1.0, 0.02), (1.0, 0.15)] {
            all.push(Weighing::Demand(Parameters {
                alpha,
                beta,
                shape: [1.0; 14],
                credit: [credit; 4],
                ..default
            }));
        }
    }
    for (beta, eps) in [(1.0, 0.005), (2.0, 0.005)] {
        all.push(Weighing::Demand(Parameters {
            beta,
            eps,
            ..default
        }));
    }
    all
}

/// The weighing that is best for this mix: the default, unless another is better on the same arrivals by more than
/// the half width of its 95 % interval.
///
/// A function of the mix alone. It takes some tenths of a second.
pub fn tune(layouts: &Layouts, mix: &[f64]) -> Weighing {
    let served = |weighing: Weighing| -> Vec<f64> {
        (0..RUNS)
            .map(|seed| {
                let arrivals = churn::poisson(layouts, mix, LOAD, CARDS, ARRIVALS, seed);
                let mut fleet = Fleet::weighed(layouts, weighing, CARDS);
                churn::lossy(&mut fleet, &arrivals, arrivals.len() / 4, false).percent()
            })
            .collect()
    };
    let all = portfolio();
    let base = served(all[0]);
    let mut best = (0.0, all[0]);
    for &weighing in &all[1..] {
        let gains: Vec<f64> = served(weighing)
            .iter()
            .zip(&base)
            .map(|(one, other)| one - other)
            .collect();
        #[allow(clippy::cast_precision_loss, reason = "runs are few")]
        let count = gains.len() as f64;
        let mean = gains.iter().sum::<f64>() / count;
        let squares: f64 = gains.iter().map(|gain| (gain - mean).powi(2)).sum();
        let half = 1.96 * (squares / (count - 1.0) / count).sqrt();
        if mean > half && mean > best.0 {
            best = (mean, weighing);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn tuning_finds_the_same_again_and_something_else_for_another_mix() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let two = [0.79, 0.21, 0.0, 0.0, 0.0, 0.0];
        let tuned = tune(&layouts, &two);
        assert_eq!(tuned, tune(&layouts, &two));
        assert_ne!(tuned, Weighing::default(), "it loses a point there");
    }
}
