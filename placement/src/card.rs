//! The planner's view of one GPU: what it offers, what is held of it, and what a placement costs its future.

use std::borrow::Cow;

use domain::{
    claim::{ClaimedDevice, ShareUse},
    gpu::{Gpu, Model, Offer},
    slices::Slices,
};

use crate::potential::Potential;

/// A GPU with all that is held of it, by claims and by instances that are not idle.
#[derive(Clone, Debug)]
pub struct Card<'a> {
    /// The GPU as its agent published it.
    pub gpu: &'a Gpu,
    /// What it offers.
    pub model: &'a Model,
    /// What its placements cost; `None` where it cannot do MIG.
    potential: Option<&'a Potential>,
    /// Placements that are held, each once.
    held: Vec<Slices>,
    /// The profile on each of them.
    profiles: Vec<Cow<'a, str>>,
    /// Software shares that are held.
    pub used_shares: ShareUse,
}

/// A legal placement for a request, with its cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) start: u8,
    /// Future capacity that the placement destroys, as a part of what an empty card has.
    pub(crate) loss: f64,
}

impl<'a> Card<'a> {
    /// An empty card.
    pub fn new(gpu: &'a Gpu, model: &'a Model, potential: Option<&'a Potential>) -> Self {
        Self {
            gpu,
            model,
            potential,
            held: Vec::new(),
            profiles: Vec::new(),
            used_shares: ShareUse::default(),
        }
    }

    /// Holds a placement; one that is held already stays as it is.
    pub fn hold(&mut self, slices: Slices, profile: impl Into<Cow<'a, str>>) {
        if !self.held.contains(&slices) {
            self.held.push(slices);
            self.profiles.push(profile.into());
        }
    }

    /// Holds a device.
    pub fn take(&mut self, device: &ClaimedDevice) {
        match device {
            ClaimedDevice::Mig(slot) => self.hold(slot.slices(), slot.profile.clone()),
            ClaimedDevice::HamiCore(share) => {
                self.used_shares = self.used_shares.plus(ShareUse::of(share));
            }
        }
    }

    /// Gives back the device that was taken last.
    pub(crate) fn give_back(&mut self, device: &ClaimedDevice) {
        match device {
            ClaimedDevice::Mig(slot) => {
                let slices = slot.slices();
                if let Some(at) = self.held.iter().rposition(|held| *held == slices) {
                    self.held.remove(at);
                    self.profiles.remove(at);
                }
            }
            ClaimedDevice::HamiCore(share) => {
                self.used_shares = self.used_shares.minus(ShareUse::of(share));
            }
        }
    }

    /// The profiles of the placements that are held.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(AsRef::as_ref)
    }

    /// All slices that are held.
    pub fn slices(&self) -> Slices {
        self.held.iter().copied().collect()
    }

    /// Whether nothing is held of the card.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.used_shares == ShareUse::default()
    }

    /// The part of the card that is held, 0 to 1.
    pub fn used(&self) -> f64 {
        let slices = f64::from(self.slices().count()) / f64::from(self.model.memory_slices.max(1));
        #[allow(
            clippy::cast_precision_loss,
            reason = "memory sizes are far below 2^52"
        )]
        let shares = self.used_shares.mem as f64 / self.model.memory_mib.max(1) as f64;
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

    /// Free placements of the offers, cheapest first; of equals the one with the most compute, then the lowest start.
    pub(crate) fn candidates(&self, offers: &[&'a Offer]) -> Vec<Candidate<'a>> {
        let loss = self.potential.map(|potential| potential.loss(&self.held));
        let mut candidates: Vec<_> = offers
            .iter()
            .flat_map(|&offer| self.free_starts(offer).map(move |start| (offer, start)))
            .map(|(offer, start)| {
                let placed = Slices::span(start, offer.size);
                Candidate {
                    offer,
                    start,
                    loss: loss.as_ref().map_or(0.0, |loss| loss(placed)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layouts::Layouts, mix::Mix, potential::Weighing};
    use domain::{fixtures, mode::VgpuMode};

    fn cheapest(model: &Model, held: &[(u8, u8)], profiles: &[&str]) -> Option<(String, u8)> {
        let status = fixtures::node("n", model, 1, VgpuMode::Mig);
        let layouts = Layouts::new(model)?;
        let mix = Mix::unknown(layouts.offers.len());
        let potential = Potential::new(&layouts, Weighing::default(), &mix);
        let mut card = Card::new(&status.gpus[0], model, Some(&potential));
        for (start, size) in held {
            card.hold(Slices::span(*start, *size), "");
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
