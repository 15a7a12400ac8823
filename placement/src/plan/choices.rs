//! The ways to place one device, best first.

use domain::{
    claim::{ClaimedDevice, Share, Slot},
    demand::{ContainerDemand, Memory, Policy},
    gpu::Model,
    mode::VgpuMode,
};

use super::{
    fit::{Fit, share_mib},
    geometry::first_geometry,
    placed::{Need, Placed},
};
use crate::card::{Candidate, Card};

/// One way to place one device.
pub(super) struct DeviceChoice<'a> {
    /// MiB above the smallest sufficient size.
    pub(super) larger: u64,
    /// Which of the known geometries it takes the card to.
    geometry: usize,
    /// The pod's wish for fuller or emptier cards, lower is better.
    wish: f64,
    /// Future capacity that it destroys, as a part of the card.
    pub(super) loss: f64,
    /// Index of the card.
    pub(super) card: usize,
    piece: Piece<'a>,
}

/// What a choice takes of its card.
enum Piece<'a> {
    Mig(Candidate<'a>),
    HamiCore { mem: u64, cores: u32 },
}

/// Every way to place one device on these cards, best first.
pub(super) fn device_choices<'a>(
    fit: &Fit<'_>,
    cards: &[Card<'a>],
    placed: &Placed,
    need: Need,
) -> Vec<DeviceChoice<'a>> {
    let container = &fit.demand.containers[need.container];
    let mut choices: Vec<DeviceChoice<'a>> = Vec::new();
    for (at, card) in cards.iter().enumerate() {
        match fit.mode {
            VgpuMode::Mig => choices.extend(instances(fit, at, card, container)),
            // A container gets two shares of one GPU never: it would see that GPU twice.
            VgpuMode::HamiCore if !placed.is_on(need.container, &card.gpu.uuid) => {
                choices.extend(share(fit, at, card, container));
            }
            VgpuMode::HamiCore => {}
        }
    }
    choices.sort_by(|a, b| {
        a.larger
            .cmp(&b.larger)
            .then(a.wish.total_cmp(&b.wish))
            .then(a.geometry.cmp(&b.geometry))
            .then(a.loss.total_cmp(&b.loss))
            .then(a.card.cmp(&b.card))
    });
    choices
}

fn wish(fit: &Fit<'_>, card: &Card<'_>) -> f64 {
    match fit.demand.gpu_policy {
        Some(Policy::Binpack) => -card.used(),
        Some(Policy::Spread) => card.used(),
        None => 0.0,
    }
}

fn instances<'a>(
    fit: &Fit<'_>,
    at: usize,
    card: &Card<'a>,
    container: &ContainerDemand,
) -> Vec<DeviceChoice<'a>> {
    let right = fit.smallest(container, card.model);
    let smallest = right.first().map_or(0, |offer| offer.memory_mib);
    let offers = if fit.demand.allow_larger {
        fit.sufficient(container, card.model)
    } else {
        right
    };
    let geometries = fit.config.geometries(card.model);
    let wish = wish(fit, card);
    let candidates = card.candidates(&offers).into_iter();
    let choices = candidates.filter_map(|candidate| {
        let geometry = match &geometries {
            Some(known) => first_geometry(known, card, &candidate)?,
            None => 0,
        };
        Some(DeviceChoice {
            larger: candidate.offer.memory_mib.saturating_sub(smallest),
            geometry,
            wish,
            loss: candidate.loss,
            card: at,
            piece: Piece::Mig(candidate),
        })
    });
    choices.collect()
}

fn share<'a>(
    fit: &Fit<'_>,
    at: usize,
    card: &Card<'a>,
    container: &ContainerDemand,
) -> Option<DeviceChoice<'a>> {
    let (mem, cores) = free_share(card, container)?;
    Some(DeviceChoice {
        larger: 0,
        geometry: 0,
        wish: wish(fit, card),
        // Without a wish the fullest card first: whole cards stay free.
        loss: part_of_gpu(mem, cores, card.model) * (2.0 - card.used()),
        card: at,
        piece: Piece::HamiCore { mem, cores },
    })
}

/// MiB and percent of compute that a container gets of a card, if so much is free; a whole card only when it is empty.
fn free_share(card: &Card<'_>, container: &ContainerDemand) -> Option<(u64, u32)> {
    let mem = share_mib(container, card.model);
    let cores = if container.memory == Memory::Whole {
        100
    } else {
        container.cores.min(100)
    };
    let fits = card.used_shares.count < card.gpu.max_shares
        && card.used_shares.mem + mem <= card.model.memory_mib
        && card.used_shares.cores + cores <= 100;
    fits.then_some((mem, cores))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
fn part_of_gpu(mem: u64, cores: u32, model: &Model) -> f64 {
    (mem as f64 / model.memory_mib.max(1) as f64).max(f64::from(cores) / 100.0)
}

impl DeviceChoice<'_> {
    /// The device, on one of the cards that the choice was made for.
    pub(super) fn device(&self, cards: &[Card<'_>]) -> ClaimedDevice {
        let gpu = cards[self.card].gpu.uuid.clone();
        match &self.piece {
            Piece::Mig(Candidate { offer, start, .. }) => ClaimedDevice::Mig(Slot {
                gpu,
                profile: offer.profile.clone(),
                start: *start,
                size: offer.size,
                mem: offer.memory_mib,
            }),
            Piece::HamiCore { mem, cores } => ClaimedDevice::HamiCore(Share {
                gpu,
                mem: *mem,
                cores: *cores,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use domain::{config::Config, demand::Demand, fixtures};

    /// The GPUs of the choices for one device, best first; the second GPU has a device already.
    fn order(mode: VgpuMode, gpu_policy: Option<Policy>, placed: &Placed) -> Vec<usize> {
        let model = fixtures::a100_80gb();
        let node = fixtures::node("n", &model, 2, mode);
        let mut cards: Vec<Card<'_>> = node
            .gpus
            .iter()
            .map(|gpu| Card::new(gpu, &model, None))
            .collect();
        cards[1].take(&used(mode));
        let demand = Demand {
            gpu_policy,
            ..fixtures::demand(9_000)
        };
        let fit = Fit {
            demand: &demand,
            config: &Config::default(),
            mode,
        };
        let need = Need {
            container: 0,
            device: 0,
        };
        let choices = device_choices(&fit, &cards, placed, need);
        let mut gpus: Vec<usize> = choices.iter().map(|choice| choice.card).collect();
        gpus.dedup();
        gpus
    }

    fn used(mode: VgpuMode) -> ClaimedDevice {
        let gpu = "GPU-n-1".to_owned();
        match mode {
            VgpuMode::Mig => ClaimedDevice::Mig(Slot {
                gpu,
                profile: "1g.10gb".to_owned(),
                start: 0,
                size: 1,
                mem: 9_728,
            }),
            VgpuMode::HamiCore => ClaimedDevice::HamiCore(Share {
                gpu,
                mem: 8_000,
                cores: 0,
            }),
        }
    }

    #[test]
    fn the_wish_of_the_pod_decides_between_gpus() {
        for mode in VgpuMode::ALL {
            let none = Placed::default();
            assert_eq!(order(mode, Some(Policy::Binpack), &none), [1, 0], "{mode}");
            assert_eq!(order(mode, Some(Policy::Spread), &none), [0, 1], "{mode}");
        }
    }

    #[test]
    fn shares_fill_the_fullest_gpu_and_a_container_has_one_share_per_gpu() {
        let mut placed = Placed::default();
        assert_eq!(order(VgpuMode::HamiCore, None, &placed), [1, 0]);
        let need = Need {
            container: 0,
            device: 1,
        };
        placed.insert(need, used(VgpuMode::HamiCore));
        assert_eq!(order(VgpuMode::HamiCore, None, &placed), [0]);
    }

    #[test]
    fn a_larger_size_is_given_only_where_allowed_and_the_right_one_is_full() {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        // Singles everywhere but on one pair.
        let config: Config = serde_json::from_str(
            r#"{"knownMigGeometries":[{"models":["A30"],
                "allowedGeometries":[[{"name":"1g.6gb","count":2},{"name":"2g.12gb","count":1}]]}]}"#,
        )
        .unwrap();
        for uid in ["a", "b"] {
            let plan = cluster
                .plan("n", &fixtures::demand(5_000), &config)
                .unwrap();
            assert_eq!(
                (plan.larger, plan.claim.slots().next().unwrap().size),
                (0, 1)
            );
            cluster.apply_pod(uid, "n", plan.claim);
        }
        assert!(
            cluster
                .plan("n", &fixtures::demand(5_000), &config)
                .is_err()
        );
        let larger = Demand {
            allow_larger: true,
            ..fixtures::demand(5_000)
        };
        let plan = cluster.plan("n", &larger, &config).unwrap();
        assert_eq!(
            (plan.larger, plan.claim.slots().next().unwrap().size),
            (1, 2)
        );
    }
}
