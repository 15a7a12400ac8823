//! A card as the scheduler sees it: what it offers, what is held, and what a placement costs its future.

use crate::{Gpu, Model, Offer, ShareUse, Slices};

/// A card with all that is held of it, by claims and by instances that cannot be given away.
#[derive(Clone, Debug)]
pub struct Card<'a> {
    /// The card as its agent published it.
    pub gpu: &'a Gpu,
    /// What the card offers.
    pub model: &'a Model,
    /// Placements that are held; no placement is named twice.
    held: Vec<Slices>,
    /// Software shares that are held.
    pub shares: ShareUse,
}

/// A legal placement for a request, with its price.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) start: u8,
    /// Future capacity that the placement destroys, as a share of what an empty card has.
    pub(crate) loss: f64,
}

impl<'a> Card<'a> {
    /// An empty card.
    pub fn new(gpu: &'a Gpu, model: &'a Model) -> Self {
        Self {
            gpu,
            model,
            held: Vec::new(),
            shares: ShareUse::default(),
        }
    }

    /// Holds a placement; one that is held already stays as it is.
    pub fn hold(&mut self, slices: Slices) {
        if !self.held.contains(&slices) {
            self.held.push(slices);
        }
    }

    /// Gives up the placement held last by [`hold`](Self::hold).
    pub(crate) fn undo(&mut self, slices: Slices) {
        if let Some(at) = self.held.iter().rposition(|held| *held == slices) {
            self.held.remove(at);
        }
    }

    /// All slices that are held.
    pub fn slices(&self) -> Slices {
        self.held.iter().copied().collect()
    }

    /// Whether nothing at all is held of the card.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.shares == ShareUse::default()
    }

    /// The part of the card that is held, 0 to 1.
    pub fn used(&self) -> f64 {
        let slices = f64::from(self.slices().count()) / f64::from(self.model.memory_slices.max(1));
        #[allow(
            clippy::cast_precision_loss,
            reason = "memory sizes are far below 2^52"
        )]
        let shares = self.shares.mem as f64 / self.model.memory_mib.max(1) as f64;
        slices.max(shares)
    }

    /// Legal placements of an offer that overlap nothing held.
    pub(crate) fn free_starts(&self, offer: &'a Offer) -> impl Iterator<Item = u8> + use<'a> {
        let held = self.slices();
        let size = offer.size;
        offer
            .starts
            .iter()
            .copied()
            .filter(move |&start| !Slices::span(start, size).overlaps(held))
    }

    /// Free placements of the offers, cheapest first; among equals the one with more compute, then the lowest start.
    pub(crate) fn candidates(&self, offers: &[&'a Offer]) -> Vec<Candidate<'a>> {
        let windows = windows(self.model);
        let before = potential(&windows, &self.held, None);
        let empty = potential(&windows, &[], None).max(f64::MIN_POSITIVE);
        let mut candidates: Vec<_> = offers
            .iter()
            .flat_map(|&offer| self.free_starts(offer).map(move |start| (offer, start)))
            .map(|(offer, start)| {
                let placed = Slices::span(start, offer.size);
                Candidate {
                    offer,
                    start,
                    loss: (before - potential(&windows, &self.held, Some(placed))) / empty,
                }
            })
            .collect();
        candidates.sort_by(|a, b| {
            a.loss
                .total_cmp(&b.loss)
                .then(b.offer.multiprocessors.cmp(&a.offer.multiprocessors))
                .then(a.start.cmp(&b.start))
                .then(a.offer.profile.cmp(&b.offer.profile))
        });
        candidates
    }
}

/// The card's windows: the slice set of every legal placement of a plain profile, with its worth.
///
/// A window is worth more the larger it is (three times for each doubling) and a little more for
/// each profile that can use it, so that of two halves the one with fewer uses goes first.
fn windows(model: &Model) -> Vec<(Slices, f64)> {
    let mut windows: Vec<(Slices, f64)> = Vec::new();
    for offer in model.offers.iter().filter(|offer| offer.is_plain()) {
        for window in offer.windows() {
            let worth = f64::from(offer.size).powf(3f64.log2());
            match windows.iter_mut().find(|(known, _)| *known == window) {
                Some((_, known)) => *known += worth / 10.0,
                None => windows.push((window, worth)),
            }
        }
    }
    windows
}

/// What a card can still offer: the sum over its windows of `worth · x^n`, `n` the placements that overlap
/// the window. The small `x` gives a nearly free window some credit, because one departure frees it.
fn potential(windows: &[(Slices, f64)], held: &[Slices], placed: Option<Slices>) -> f64 {
    const CREDIT: f64 = 0.05;
    windows
        .iter()
        .map(|(window, worth)| {
            let overlaps = held
                .iter()
                .chain(&placed)
                .filter(|placement| placement.overlaps(*window))
                .count();
            worth * CREDIT.powi(i32::try_from(overlaps).unwrap_or(i32::MAX))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VgpuMode, fixtures};

    fn cheapest(model: &Model, held: &[(u8, u8)], profiles: &[&str]) -> Option<(String, u8)> {
        let status = fixtures::node("n", model, 1, VgpuMode::Mig);
        let mut card = Card::new(&status.gpus[0], model);
        for (start, size) in held {
            card.hold(Slices::span(*start, *size));
        }
        let offers: Vec<_> = profiles.iter().map(|p| model.offer(p).unwrap()).collect();
        card.candidates(&offers)
            .first()
            .map(|c| (c.offer.profile.clone(), c.start))
    }

    #[test]
    fn a_half_goes_where_4g_cannot_start() {
        let model = fixtures::a100_80gb();
        let at = |held: &[_]| cheapest(&model, held, &["3g.40gb", "4g.40gb"]).unwrap();
        assert_eq!(at(&[]), ("3g.40gb".to_owned(), 4));
        assert_eq!(at(&[(6, 1)]), ("4g.40gb".to_owned(), 0));
    }

    #[test]
    fn small_ones_fill_broken_windows_first() {
        let model = fixtures::a100_80gb();
        for (held, start) in [
            (&[][..], 6),
            (&[(6, 1)], 4),
            (&[(0, 4)], 6),
            (&[(4, 4)], 0),
            (&[(4, 4), (0, 1)], 1),
            (&[(4, 4), (2, 2)], 0),
        ] {
            let (_, at) = cheapest(&model, held, &["1g.10gb"]).unwrap();
            assert_eq!(at, start, "{held:?}");
        }
    }

    #[test]
    fn of_equal_windows_the_one_with_more_compute_is_given() {
        let model = fixtures::a100_80gb();
        let (profile, _) = cheapest(&model, &[(6, 2)], &["1g.20gb", "2g.20gb"]).unwrap();
        assert_eq!(profile, "2g.20gb");
    }

    #[test]
    fn a_full_card_has_no_candidate() {
        assert_eq!(cheapest(&fixtures::a30(), &[(0, 4)], &["1g.6gb"]), None);
    }
}
