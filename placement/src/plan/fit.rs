//! Which profiles and shares serve a container's demand.

use domain::{
    claim::ClaimedDevice,
    config::{Config, Geometry},
    demand::{ContainerDemand, Demand, Memory},
    gpu::{Model, Offer},
    mode::VgpuMode,
    refusal::Refusal,
};

use crate::card::Card;

/// What one pod asks for in one mode.
#[derive(Clone, Copy)]
pub(super) struct Fit<'d> {
    pub(super) demand: &'d Demand,
    pub(super) config: &'d Config,
    pub(super) mode: VgpuMode,
}

impl Fit<'_> {
    /// Refuses what none of these cards could serve even when it is empty.
    pub(super) fn check_size(
        &self,
        cards: &[Card<'_>],
        container: &ContainerDemand,
    ) -> Result<(), Refusal> {
        let has_memory = |card: &Card<'_>| match self.mode {
            VgpuMode::HamiCore => share_mib(container, card.model) <= card.model.memory_mib,
            VgpuMode::Mig => {
                let mut offers = card.model.offers.iter();
                offers.any(|offer| self.has_memory(container, card.model, offer))
            }
        };
        if !cards.iter().any(has_memory) {
            return Err(Refusal::TooLarge {
                asked: container.memory,
                largest_mib: self.largest_mib(cards),
            });
        }
        let has_cores = |card: &Card<'_>| !self.smallest(container, card.model).is_empty();
        if self.mode == VgpuMode::Mig && !cards.iter().any(has_cores) {
            return Err(Refusal::Cores {
                asked: container.cores,
            });
        }
        Ok(())
    }

    /// The most memory that one device can have on any of these cards.
    fn largest_mib(&self, cards: &[Card<'_>]) -> u64 {
        let largest = |card: &Card<'_>| match self.mode {
            VgpuMode::HamiCore => card.model.memory_mib,
            VgpuMode::Mig => {
                let offers = card.model.offers.iter();
                let usable = offers.filter(|offer| self.is_in_a_geometry(card.model, offer));
                usable.map(|offer| offer.memory_mib).max().unwrap_or(0)
            }
        };
        cards.iter().map(largest).max().unwrap_or(0)
    }

    fn has_memory(&self, container: &ContainerDemand, model: &Model, offer: &Offer) -> bool {
        if !offer.is_plain() || !self.is_in_a_geometry(model, offer) {
            return false;
        }
        if container.memory == Memory::Whole {
            return model.whole().is_some_and(|whole| whole == offer);
        }
        let asked = container.memory.mib_of(model.memory_mib);
        offer.memory_mib >= asked
            || (self.config.nominal_memory && offer.nominal_mib().is_some_and(|mib| mib >= asked))
    }

    fn is_sufficient(&self, container: &ContainerDemand, model: &Model, offer: &Offer) -> bool {
        self.has_memory(container, model, offer) && model.cores_percent(offer) >= container.cores
    }

    /// Whether the configuration lets the model's GPUs be cut so that such an instance is among the pieces.
    fn is_in_a_geometry(&self, model: &Model, offer: &Offer) -> bool {
        let known = self.config.geometries(model);
        known.is_none_or(|known| {
            let names = |geometry: &&Geometry| geometry.0.iter().any(|i| i.name == offer.profile);
            known.iter().any(names)
        })
    }

    /// The offers that serve a container, of any memory size.
    pub(super) fn sufficient<'m>(
        &self,
        container: &ContainerDemand,
        model: &'m Model,
    ) -> Vec<&'m Offer> {
        let offers = model.offers.iter();
        offers
            .filter(|offer| self.is_sufficient(container, model, offer))
            .collect()
    }

    /// The offers that serve a container with the smallest sufficient memory size.
    pub(super) fn smallest<'m>(
        &self,
        container: &ContainerDemand,
        model: &'m Model,
    ) -> Vec<&'m Offer> {
        let mut offers = self.sufficient(container, model);
        let smallest = offers.iter().map(|offer| offer.memory_mib).min();
        offers.retain(|offer| Some(offer.memory_mib) == smallest);
        offers
    }

    /// The memory of the smallest device that serves a container on any of these cards.
    pub(super) fn smallest_mib(&self, cards: &[Card<'_>], container: &ContainerDemand) -> u64 {
        let smallest = |card: &Card<'_>| match self.mode {
            VgpuMode::HamiCore => Some(share_mib(container, card.model)),
            VgpuMode::Mig => {
                let offers = self.smallest(container, card.model);
                offers.first().map(|offer| offer.memory_mib)
            }
        };
        cards.iter().filter_map(smallest).min().unwrap_or(0)
    }

    /// Whether a device that another container has would serve this one too.
    pub(super) fn serves(
        &self,
        container: &ContainerDemand,
        model: &Model,
        device: &ClaimedDevice,
    ) -> bool {
        match device {
            ClaimedDevice::Mig(slot) => {
                let offer = model.offer(&slot.profile);
                offer.is_some_and(|offer| self.is_sufficient(container, model, offer))
            }
            ClaimedDevice::HamiCore(share) => {
                share.mem >= share_mib(container, model)
                    && (share.cores == 0 || (container.cores > 0 && share.cores >= container.cores))
            }
        }
    }
}

/// The memory of a share of a GPU that serves a container.
pub(super) fn share_mib(container: &ContainerDemand, model: &Model) -> u64 {
    container.memory.mib_of(model.memory_mib)
}

/// The part of an instance that was asked for, in memory or compute, whichever is more.
#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
pub(super) fn asked_part(container: &ContainerDemand, model: &Model, offer: &Offer) -> f64 {
    let memory = match container.memory {
        Memory::Whole => 1.0,
        memory => memory.mib_of(model.memory_mib) as f64 / offer.memory_mib.max(1) as f64,
    };
    let cores = f64::from(container.cores) / f64::from(model.cores_percent(offer).max(1));
    memory.max(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    fn profiles(mib: u64, cores: u32, config: &Config) -> Vec<String> {
        let mut demand = fixtures::demand(mib);
        demand.containers[0].cores = cores;
        let fit = Fit {
            demand: &demand,
            config,
            mode: VgpuMode::Mig,
        };
        let model = fixtures::a100_80gb();
        let offers = fit.smallest(&demand.containers[0], &model);
        offers.iter().map(|offer| offer.profile.clone()).collect()
    }

    #[test]
    fn the_smallest_memory_that_is_enough_decides_and_compute_is_a_condition() {
        let config = Config::default();
        assert_eq!(profiles(9_000, 0, &config), ["1g.10gb"]);
        assert_eq!(profiles(39_000, 0, &config), ["3g.40gb", "4g.40gb"]);
        assert_eq!(profiles(39_000, 50, &config), ["4g.40gb"]);
        assert_eq!(profiles(9_000, 25, &config), ["2g.20gb"]);
        assert!(profiles(90_000, 0, &config).is_empty());
    }

    #[test]
    fn a_profile_serves_the_size_in_its_name_unless_the_configuration_forbids_it() {
        let exact = Config {
            nominal_memory: false,
            ..Config::default()
        };
        assert_eq!(profiles(10_240, 0, &Config::default()), ["1g.10gb"]);
        assert_ne!(profiles(10_240, 0, &exact), ["1g.10gb"]);
    }
}
