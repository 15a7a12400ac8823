//! What a card can still offer, as a number: what placements are chosen by.
//!
//! V = Σ over the windows W of w(W) · x(W)^n(W) + κ · free², n(W) = live placements that overlap W. A
//! request is placed where V falls least. A window counts fully while it is free; the small x gives a
//! nearly free one some credit, because one departure frees it. While a fleet has many empty cards
//! there is no need to pay for that with slices that nobody can use: [`Weighing::Filling`]. See
//! `docs/placement.md`.

use std::collections::HashMap;

use domain::{gpu::Offer, slices::Slices};

use crate::{layouts::Layouts, mix::Mix};

/// What a state of a card is worth: ours, and those of published rules that have this form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighing {
    /// By the profiles that are asked for, in the mix that was seen.
    Demand(Parameters),
    /// By hand: halves, pairs and singles at fixed weights.
    Fixed,
    /// Minus the blocked placements, by size, of the profiles that fit in the free slices (MFI, arXiv 2511.18906, literal).
    Mfi,
    /// The same over all profiles.
    MfiAll,
    /// Minus the free slices that the expected request cannot use (FGD on MIG masks).
    Fgd,
    /// For a fleet with many empty cards: no slice wasted, then the fullest card, then the longest run left.
    Filling,
}

impl Default for Weighing {
    fn default() -> Self {
        Self::Demand(Parameters::default())
    }
}

impl Weighing {
    /// Whether it depends on the mix.
    pub fn follows_mix(self) -> bool {
        matches!(self, Self::Demand(_) | Self::Fgd)
    }
}

/// The constants of the demand-aware weighing; found by simulation on 8-slice cards, and by relative size on others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// Exponent of a profile's size in eighths of the card.
    pub alpha: f64,
    /// Exponent of a profile's part of the mix.
    pub beta: f64,
    /// Added to that part, so that a profile that nobody asks for now is not worthless.
    pub eps: f64,
    /// Weight of the squared free share of the card.
    pub kappa: f64,
    /// Factors of the whole, the halves, the quarters and the eighths, by position.
    pub shape: [f64; 14],
    /// Credit of a window per placement that blocks it: whole, half, quarter, eighth.
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
    form: Form,
    slices: u8,
    /// What a loss is divided by.
    scale: f64,
}

#[derive(Clone, Debug)]
enum Form {
    Windows {
        terms: Vec<Term>,
        /// Per squared share of free slices.
        kappa: f64,
    },
    /// Each legal placement and its size.
    Blocked {
        placements: Vec<(Slices, u32)>,
        only_fitting: bool,
    },
    /// Each profile's part of the mix, and its windows.
    Unusable { profiles: Vec<(f64, Vec<Slices>)> },
    /// The most slices that disjoint windows can still take, by the set of held slices.
    Filling {
        usable: HashMap<Slices, u32>,
        placements: Vec<Slices>,
    },
}

impl Potential {
    /// Weighs the states of a model, by the mix where the weighing follows it.
    pub fn new(layouts: &Layouts, weighing: Weighing, mix: &Mix) -> Self {
        let blocked = |only_fitting| Form::Blocked {
            placements: layouts
                .offers
                .iter()
                .flat_map(|offer| offer.windows().map(|w| (w, u32::from(offer.size))))
                .collect(),
            only_fitting,
        };
        let form = match weighing {
            Weighing::Demand(parameters) => {
                let weigh = |window, class, at| {
                    let wanted = wanted(layouts, mix, window, &parameters);
                    let weight = wanted * parameters.shape(class, at);
                    (weight, parameters.credit(class))
                };
                Form::Windows {
                    terms: terms(layouts, weigh),
                    kappa: parameters.kappa,
                }
            }
            Weighing::Fixed => Form::Windows {
                terms: terms(layouts, |_, class, at| fixed(class, at)),
                kappa: 0.0,
            },
            Weighing::Mfi => blocked(true),
            Weighing::MfiAll => blocked(false),
            Weighing::Fgd => Form::Unusable {
                profiles: layouts
                    .offers
                    .iter()
                    .zip(&mix.parts)
                    .map(|(offer, part)| (*part, offer.windows().collect()))
                    .collect(),
            },
            Weighing::Filling => Form::Filling {
                usable: usable(layouts),
                placements: placements(layouts),
            },
        };
        let mut potential = Self {
            form,
            slices: layouts.slices,
            scale: 1.0,
        };
        let slices = f64::from(layouts.slices.max(1));
        potential.scale = match &potential.form {
            Form::Windows { .. } => potential.value(&[], None),
            Form::Blocked { placements, .. } => {
                let sizes = placements.iter().map(|(_, size)| f64::from(*size));
                sizes.sum()
            }
            Form::Unusable { .. } => slices,
            Form::Filling { .. } => (slices + 1.0) * (slices + 1.0),
        }
        .max(f64::MIN_POSITIVE);
        potential
    }

    /// What a placement destroys on a card that holds these, as a part of what an empty card has.
    pub fn loss<'p>(&'p self, held: &'p [Slices]) -> impl Fn(Slices) -> f64 + 'p {
        let before = self.value(held, None);
        let taken: Slices = held.iter().copied().collect();
        move |placed| {
            let loss = match &self.form {
                Form::Filling { usable, placements } => {
                    self.waste(usable, placements, taken, placed)
                }
                _ => before - self.value(held, Some(placed)),
            };
            loss / self.scale
        }
    }

    /// Slices that become useless, then free slices of the card, then the longest run left, then the placements left.
    fn waste(
        &self,
        usable: &HashMap<Slices, u32>,
        placements: &[Slices],
        taken: Slices,
        placed: Slices,
    ) -> f64 {
        let slices = u32::from(self.slices);
        let of = |taken: Slices| f64::from(*usable.get(&taken).unwrap_or(&0));
        let after = taken.union(placed);
        let wasted = (of(taken) - of(after) - f64::from(placed.count())).max(0.0);
        let free = f64::from(slices.saturating_sub(taken.count()));
        let left = freedom(self.slices, placements, after) / f64::from(slices + 2);
        wasted * f64::from(slices + 1) + free - left
    }

    /// The potential of a card that holds these placements, and `more`.
    pub fn value(&self, held: &[Slices], more: Option<Slices>) -> f64 {
        let taken: Slices = held.iter().copied().chain(more).collect();
        let slices = u32::from(self.slices.max(1));
        let free = slices.saturating_sub(taken.count());
        match &self.form {
            Form::Windows { terms, kappa } => {
                let windows: f64 = terms
                    .iter()
                    .map(|term| {
                        let all = held.iter().chain(&more);
                        let over = all.filter(|slices| slices.overlaps(term.window));
                        over.fold(term.weight, |weight, _| weight * term.credit)
                    })
                    .sum();
                let share = f64::from(free) / f64::from(slices);
                windows + kappa * share * share
            }
            Form::Blocked {
                placements,
                only_fitting,
            } => {
                let counted = placements
                    .iter()
                    .filter(|(window, size)| {
                        window.overlaps(taken) && !(*only_fitting && *size > free)
                    })
                    .map(|(_, size)| size);
                -f64::from(counted.sum::<u32>())
            }
            Form::Unusable { profiles } => {
                let none = profiles
                    .iter()
                    .filter(|(_, windows)| windows.iter().all(|window| window.overlaps(taken)));
                -f64::from(free) * none.map(|(part, _)| part).sum::<f64>()
            }
            Form::Filling { usable, .. } => f64::from(*usable.get(&taken).unwrap_or(&0)),
        }
    }

    /// The potential of every state, by index.
    pub fn of_states(&self, layouts: &Layouts) -> Vec<f64> {
        let mut held = Vec::new();
        layouts
            .ids()
            .map(|state| {
                held.clear();
                held.extend(layouts.windows_of(state));
                self.value(&held, None)
            })
            .collect()
    }
}

/// Every legal placement of every profile.
pub(crate) fn placements(layouts: &Layouts) -> Vec<Slices> {
    layouts.offers.iter().flat_map(Offer::windows).collect()
}

/// The longest run of free slices of a card, plus, as a part of 1, how many placements are still legal.
pub(crate) fn freedom(slices: u8, placements: &[Slices], taken: Slices) -> f64 {
    let (mut run, mut longest) = (0, 0);
    for slice in 0..slices {
        let is_held = Slices::span(slice, 1).overlaps(taken);
        run = if is_held { 0 } else { run + 1 };
        longest = longest.max(run);
    }
    let legal = placements.iter().filter(|window| !window.overlaps(taken));
    #[allow(clippy::cast_precision_loss, reason = "placements are few")]
    let legal = legal.count() as f64 / (placements.len() + 1) as f64;
    f64::from(longest) + legal
}

/// The most slices that disjoint windows can still take, for each set of slices that a state holds.
fn usable(layouts: &Layouts) -> HashMap<Slices, u32> {
    let mut usable: HashMap<Slices, u32> = HashMap::new();
    let mut sets: Vec<Slices> = layouts.ids().map(|state| layouts.held(state)).collect();
    sets.sort_by_key(|set| std::cmp::Reverse(set.count()));
    for set in sets {
        let free = layouts.windows.iter().filter(|w| !w.overlaps(set));
        let most = free.map(|w| w.count() + usable.get(&set.union(*w)).unwrap_or(&0));
        let most = most.max().unwrap_or(0);
        usable.insert(set, most);
    }
    usable
}

fn terms(layouts: &Layouts, weigh: impl Fn(Slices, Class, u32) -> (f64, f64)) -> Vec<Term> {
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
    terms
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

/// What the profiles that fit on a window are worth in this mix.
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
    use domain::fixtures;

    #[test]
    fn an_empty_card_is_worth_most() {
        for model in fixtures::models() {
            let layouts = Layouts::new(&model).unwrap();
            let mix = Mix::unknown(layouts.offers.len());
            for weighing in [Weighing::default(), Weighing::Fixed, Weighing::MfiAll] {
                let table = Potential::new(&layouts, weighing, &mix).of_states(&layouts);
                assert!(table.iter().all(|value| *value <= table[0]), "{weighing:?}");
            }
        }
    }

    #[test]
    fn filling_wastes_no_slice_and_opens_no_card() {
        let layouts = Layouts::new(&fixtures::a100_80gb()).unwrap();
        let mix = Mix::unknown(layouts.offers.len());
        let filling = Potential::new(&layouts, Weighing::Filling, &mix);
        let loss = |held: &[(u8, u8)], at: (u8, u8)| {
            let held: Vec<Slices> = held.iter().map(|(s, n)| Slices::span(*s, *n)).collect();
            filling.loss(&held)(Slices::span(at.0, at.1))
        };
        // A single at 6 makes slice 7 useless for ever.
        assert!(loss(&[], (0, 1)) < loss(&[], (6, 1)));
        // A fuller card is better than an empty one, but not at the price of a slice.
        assert!(loss(&[(0, 4)], (4, 1)) < loss(&[], (0, 1)));
        assert!(loss(&[(4, 2)], (0, 1)) < loss(&[(4, 2)], (6, 1)));
        assert!(loss(&[], (0, 1)) < loss(&[(0, 4), (4, 2)], (6, 1)));
        for model in fixtures::models() {
            let layouts = Layouts::new(&model).unwrap();
            let usable = usable(&layouts);
            assert_eq!(usable[&Slices::EMPTY], u32::from(model.memory_slices));
        }
    }
}
