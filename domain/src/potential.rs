//! What a card can still offer, as a number: the rule of placement.
//!
//! V = Σ over the windows W of w(W) · x(W)^n(W) + κ · free², n(W) = live placements that overlap W. A
//! request is placed where V falls least. A window counts fully while it is free; the small x gives a
//! nearly free one some credit, because one departure frees it. See `docs/placement.md`.

use crate::{Layouts, Slices};

/// How windows are weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weighing {
    /// By the profiles that are asked for, in the mix that was seen.
    #[default]
    Demand,
    /// By hand: halves, pairs and singles at fixed weights.
    Fixed,
}

/// The mix of profiles that are asked for, each a part of 1, in the order of the model's plain offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Parts; they add up to 1.
    pub parts: Vec<f64>,
    seen: u32,
}

/// The constants of the demand-aware weighing; found by simulation on 8-slice cards, and by relative size on others.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Exponent of a profile's size in eighths of the card.
    pub alpha: f64,
    /// Exponent of a profile's part of the mix.
    pub beta: f64,
    /// Added to that part, so that what is not asked for now is not worthless.
    pub eps: f64,
    /// Weight of the squared free share of the card.
    pub kappa: f64,
    /// Factors of the whole, of the halves, of the quarters and of the eighths, by place.
    pub shape: [f64; 14],
    /// Credit of a window for each placement that stands in its way: whole, half, quarter, eighth.
    pub credit: [f64; 4],
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            alpha: 3.2514,
            beta: 0.4527,
            eps: 0.0407,
            kappa: 0.005_972 * 8.0,
            shape: [
                1.0, // whole
                0.7805, 1.217, // halves
                0.2109, 3.552, 0.278, 0.3314, // quarters
                0.982, 0.982, 0.982, 0.982, 2.401, 2.401,
                0.4708, // eighths that have a compute slice
            ],
            credit: [0.0199, 0.0111, 0.026, 0.0227],
        }
    }
}

/// Requests over which the mix is averaged.
const MEMORY: u32 = 500;

impl Mix {
    /// Nothing is known: all the same.
    pub fn unknown(profiles: usize) -> Self {
        let part = 1.0 / f64::from(u32::try_from(profiles.max(1)).unwrap_or(u32::MAX));
        Self {
            parts: vec![part; profiles],
            seen: 0,
        }
    }

    /// The mix of these weights.
    pub fn of(mut weights: Vec<f64>) -> Self {
        let sum: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum.max(f64::MIN_POSITIVE);
        }
        Self {
            parts: weights,
            seen: MEMORY,
        }
    }

    /// A request for the profile of that index was seen.
    pub fn saw(&mut self, profile: usize) {
        // The unknown mix counts as some requests at first, so that the first few do not decide alone.
        self.seen = (self.seen + 1).min(MEMORY);
        let weight = 1.0 / f64::from(self.seen + 20).min(f64::from(MEMORY));
        for (at, part) in self.parts.iter_mut().enumerate() {
            let now = if at == profile { 1.0 } else { 0.0 };
            *part += weight * (now - *part);
        }
    }
}

/// The size of a window relative to its card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Whole,
    Half,
    Quarter,
    Single,
}

#[derive(Clone, Debug)]
struct Term {
    window: Slices,
    weight: f64,
    credit: f64,
}

/// The potential of a model's cards.
#[derive(Clone, Debug)]
pub struct Potential {
    terms: Vec<Term>,
    /// Per squared share of free slices.
    kappa: f64,
    slices: u8,
}

impl Potential {
    /// Weighs the windows of a model, by the mix where the weighing follows it.
    pub fn new(layouts: &Layouts, weighing: Weighing, mix: &Mix) -> Self {
        match weighing {
            Weighing::Demand => Self::by_demand(layouts, mix, &Parameters::default()),
            Weighing::Fixed => Self::of_terms(layouts, 0.0, |_, class, at| fixed(class, at)),
        }
    }

    /// Weighs the windows of a model by the mix, with other constants.
    pub fn by_demand(layouts: &Layouts, mix: &Mix, parameters: &Parameters) -> Self {
        Self::of_terms(layouts, parameters.kappa, |window, class, at| {
            let wanted = wanted(layouts, mix, window, parameters);
            (
                wanted * parameters.shape(class, at),
                parameters.credit(class),
            )
        })
    }

    fn of_terms(
        layouts: &Layouts,
        kappa: f64,
        weigh: impl Fn(Slices, Class, u32) -> (f64, f64),
    ) -> Self {
        let mut terms: Vec<Term> = layouts
            .windows
            .iter()
            .map(|&window| {
                let (class, at) = place(window, layouts.slices);
                let (weight, credit) = weigh(window, class, at);
                Term {
                    window,
                    weight,
                    credit,
                }
            })
            .collect();
        let largest = terms
            .iter()
            .map(|term| term.weight)
            .fold(f64::MIN_POSITIVE, f64::max);
        for term in &mut terms {
            term.weight /= largest;
        }
        Self {
            terms,
            kappa,
            slices: layouts.slices,
        }
    }

    /// The potential of a card on which these placements are live, and `more`.
    pub fn value(&self, held: &[Slices], more: Option<Slices>) -> f64 {
        let windows: f64 = self
            .terms
            .iter()
            .map(|term| {
                let over = held
                    .iter()
                    .chain(&more)
                    .filter(|slices| slices.overlaps(term.window));
                term.weight
                    * term
                        .credit
                        .powi(i32::try_from(over.count()).unwrap_or(i32::MAX))
            })
            .sum();
        let taken: Slices = held.iter().copied().chain(more).collect();
        let slices = f64::from(self.slices.max(1));
        let free = (slices - f64::from(taken.count())) / slices;
        windows + self.kappa * free * free
    }

    /// The potential of every state, by index.
    pub fn of_states(&self, layouts: &Layouts) -> Vec<f64> {
        let slices = f64::from(layouts.slices.max(1));
        layouts
            .ids()
            .map(|state| {
                let windows = (0u8..).zip(&self.terms).map(|(window, term)| {
                    let over = layouts.over(state, window);
                    term.weight * term.credit.powi(i32::try_from(over).unwrap_or(i32::MAX))
                });
                let free = f64::from(layouts.free(state)) / slices;
                windows.sum::<f64>() + self.kappa * free * free
            })
            .collect()
    }
}

/// Class of a window, and its position in eighths of the card.
fn place(window: Slices, slices: u8) -> (Class, u32) {
    let slices = u32::from(slices.max(1));
    let size = window.count();
    let class = match size * 8 / slices {
        8.. => Class::Whole,
        4..8 => Class::Half,
        2..4 => Class::Quarter,
        _ => Class::Single,
    };
    (class, window.first() * 8 / slices)
}

/// What the profiles that can stand on a window are worth in this mix.
fn wanted(layouts: &Layouts, mix: &Mix, window: Slices, parameters: &Parameters) -> f64 {
    let users = layouts.offers.iter().zip(&mix.parts);
    users
        .filter(|(offer, _)| offer.windows().any(|own| own == window))
        .map(|(offer, part)| {
            let eighths = 8.0 * f64::from(offer.size) / f64::from(layouts.slices.max(1));
            (part + parameters.eps).powf(parameters.beta) * eighths.powf(parameters.alpha)
        })
        .sum()
}

impl Parameters {
    fn shape(&self, class: Class, at: u32) -> f64 {
        let at = at as usize;
        let index = match class {
            Class::Whole => 0,
            Class::Half => 1 + at / 4,
            Class::Quarter => 3 + at / 2,
            Class::Single => 7 + at.min(6),
        };
        self.shape.get(index).copied().unwrap_or(1.0)
    }

    fn credit(&self, class: Class) -> f64 {
        self.credit[class as usize]
    }
}

fn fixed(class: Class, at: u32) -> (f64, f64) {
    match (class, at) {
        (Class::Whole, _) => (27.0, 0.05),
        (Class::Half, 0) => (10.0, 0.10),
        (Class::Half, _) => (8.0, 0.10),
        (Class::Quarter, _) => (3.0, 0.05),
        (Class::Single, _) => (1.0, 0.05),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_table_over_states_says_the_same_as_the_formula() {
        for model in [
            fixtures::a100_80gb(),
            fixtures::a30(),
            fixtures::rtx_pro_6000(),
        ] {
            let layouts = Layouts::new(&model).unwrap();
            let mix = Mix::unknown(layouts.offers.len());
            for weighing in [Weighing::Demand, Weighing::Fixed] {
                let potential = Potential::new(&layouts, weighing, &mix);
                let table = potential.of_states(&layouts);
                for (mask, value) in layouts.states.iter().zip(&table) {
                    let windows = layouts.windows.iter().enumerate();
                    let held: Vec<Slices> = windows
                        .filter(|(at, _)| mask & 1 << at != 0)
                        .map(|(_, w)| *w)
                        .collect();
                    assert!((potential.value(&held, None) - value).abs() < 1e-12);
                }
                assert!(
                    table.iter().all(|value| *value <= table[0]),
                    "an empty card is worth most"
                );
            }
        }
    }

    #[test]
    fn the_mix_follows_what_is_asked_for() {
        let mut mix = Mix::unknown(4);
        for _ in 0..2_000 {
            mix.saw(2);
        }
        assert!(mix.parts[2] > 0.95, "{mix:?}");
        assert!((mix.parts.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
