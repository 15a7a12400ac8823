//! Ordinary init containers: each runs alone but for the sidecars that were started before it.

use domain::{claim::ClaimedDevice, demand::ContainerKind, refusal::Refusal};

use super::{
    choices::{DeviceChoice, device_choices},
    explain::occupied,
    fit::Fit,
    placed::{Need, Placed},
};
use crate::card::Card;

/// What the devices of an init container cost beyond those that the pod has anyway.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pub(super) loss: f64,
    /// Devices of a larger size than the smallest sufficient one.
    pub(super) larger: u32,
}

/// Places an ordinary init container: on an application container's device where that is large enough, or on
/// slices of its own, those first that the pod holds anyway.
pub(super) fn place_init(
    fit: &Fit<'_>,
    container: usize,
    without_pod: &[Card<'_>],
    placed: &mut Placed,
) -> Result<Cost, Refusal> {
    let (mut beside, mut lendable) = beside_init(fit, without_pod, placed);
    let mut cost = Cost::default();
    let count = fit.demand.containers[container].count as usize;
    for need in (0..count).map(|device| Need { container, device }) {
        let lent = lend(fit, need, &beside, placed, &mut lendable);
        let device = if let Some(device) = lent {
            device
        } else {
            let best = cheapest(fit, need, &beside, placed)?;
            let device = best.device(&beside);
            cost.larger += u32::from(best.larger > 0);
            if placed.new_slices(&device) > 0 {
                cost.loss += best.loss;
            }
            device
        };
        if let Some(card) = beside.iter_mut().find(|card| card.gpu.uuid == device.gpu()) {
            card.take(&device);
        }
        placed.insert(need, device);
    }
    Ok(cost)
}

/// The cards with what runs beside an init container, the pod's sidecars; and the devices of its application
/// containers, the smallest first.
fn beside_init<'a>(
    fit: &Fit<'_>,
    without_pod: &[Card<'a>],
    placed: &Placed,
) -> (Vec<Card<'a>>, Vec<ClaimedDevice>) {
    let mut beside = without_pod.to_vec();
    let mut lendable: Vec<ClaimedDevice> = Vec::new();
    for (need, device) in placed.iter() {
        match fit.demand.containers[need.container].kind {
            ContainerKind::Sidecar => {
                let card = beside.iter_mut().find(|card| card.gpu.uuid == device.gpu());
                if let Some(card) = card {
                    card.take(device);
                }
            }
            ContainerKind::App => lendable.push(device.clone()),
            // Init containers run one after the other.
            ContainerKind::Init => {}
        }
    }
    lendable.sort_by_key(ClaimedDevice::memory_mib);
    (beside, lendable)
}

/// Takes the smallest device of an application container that serves the need, if it is free while the init container runs.
fn lend(
    fit: &Fit<'_>,
    need: Need,
    beside: &[Card<'_>],
    placed: &Placed,
    lendable: &mut Vec<ClaimedDevice>,
) -> Option<ClaimedDevice> {
    let container = &fit.demand.containers[need.container];
    let card_of = |device: &ClaimedDevice| {
        let mut cards = beside.iter();
        cards.find(|card| card.gpu.uuid == device.gpu())
    };
    let at = lendable.iter().position(|device| {
        let is_second_share =
            device.share().is_some() && placed.is_on(need.container, device.gpu());
        !is_second_share
            && card_of(device).is_some_and(|card| fit.serves(container, card.model, device))
    })?;
    let device = &lendable[at];
    let held = card_of(device)?.slices();
    // An earlier device of this init container may stand there.
    let is_free = device
        .slot()
        .is_none_or(|slot| !held.overlaps(slot.slices()));
    is_free.then(|| lendable.remove(at))
}

/// The device of its own that takes the fewest slices that the pod does not hold yet.
fn cheapest<'a>(
    fit: &Fit<'_>,
    need: Need,
    beside: &[Card<'a>],
    placed: &Placed,
) -> Result<DeviceChoice<'a>, Refusal> {
    let new = |choice: &DeviceChoice<'_>| placed.new_slices(&choice.device(beside));
    let choices = device_choices(fit, beside, placed, need).into_iter();
    let best = choices.min_by(|a, b| {
        a.larger
            .cmp(&b.larger)
            .then(new(a).cmp(&new(b)))
            .then(a.loss.total_cmp(&b.loss))
    });
    best.ok_or_else(|| occupied(fit, beside, &[need]))
}

#[cfg(test)]
mod tests {
    use domain::{
        claim::Claim,
        config::Config,
        demand::{ContainerDemand, ContainerKind, Demand, Memory},
        fixtures,
        mode::VgpuMode,
    };

    use crate::cluster::Cluster;

    fn claim(containers: &[(ContainerKind, u64)]) -> Claim {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        let containers = containers.iter().map(|(kind, mib)| ContainerDemand {
            name: format!("{kind:?}"),
            kind: *kind,
            count: 1,
            memory: Memory::Mib(*mib),
            cores: 0,
        });
        let demand = Demand {
            containers: containers.collect(),
            ..fixtures::demand(0)
        };
        let plan = cluster.plan("n", &demand, &Config::default());
        plan.unwrap().claim
    }

    #[test]
    fn an_init_container_uses_the_device_of_the_application_where_that_is_enough() {
        let claim = claim(&[(ContainerKind::Init, 8_000), (ContainerKind::App, 19_000)]);
        assert_eq!(claim.containers[0].devices, claim.containers[1].devices);
    }

    #[test]
    fn a_larger_init_container_stands_on_the_slices_that_the_pod_holds_anyway() {
        let claim = claim(&[(ContainerKind::Init, 39_000), (ContainerKind::App, 8_000)]);
        let slots: Vec<_> = claim.slots().collect();
        assert!(slots[0].slices().overlaps(slots[1].slices()), "{slots:?}");
    }

    #[test]
    fn an_init_container_keeps_off_the_slices_of_a_sidecar() {
        let claim = claim(&[
            (ContainerKind::Sidecar, 8_000),
            (ContainerKind::Init, 39_000),
            (ContainerKind::App, 8_000),
        ]);
        let slots: Vec<_> = claim.slots().collect();
        assert!(!slots[0].slices().overlaps(slots[1].slices()), "{slots:?}");
    }
}
