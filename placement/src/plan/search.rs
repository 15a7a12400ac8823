//! Finds a place for every device of a pod on the cards of a node, with backtracking.

use domain::{
    claim::{Claim, ContainerClaim},
    demand::{ContainerDemand, ContainerKind},
    mode::VgpuMode,
    refusal::Refusal,
};

use super::{
    choices::{DeviceChoice, device_choices},
    explain::occupied,
    fit::{Fit, asked_part},
    init::place_init,
    outcome::{Plan, Suitability},
    placed::{Need, Placed},
};
use crate::card::Card;

/// Places tried for one pod before giving up; a pod of a few devices needs a few dozen.
const MAX_STEPS: u32 = 20_000;

/// The state of one planning: the cards with what this pod takes of them so far.
struct Search<'a, 'd> {
    fit: Fit<'d>,
    cards: Vec<Card<'a>>,
    placed: Placed,
    loss: f64,
    larger: u32,
    steps: u32,
}

/// Plans a demand on these cards, all of which work in its mode or would change to it.
pub(super) fn search(fit: Fit<'_>, cards: &[Card<'_>]) -> Result<Plan, Refusal> {
    let containers = &fit.demand.containers;
    for container in containers {
        fit.check_size(cards, container)?;
    }
    // What runs together comes first, and of that the largest: it has the fewest places.
    let mut together = needs(containers, |kind| kind != ContainerKind::Init);
    together.sort_by_key(|need| {
        std::cmp::Reverse(fit.smallest_mib(cards, &containers[need.container]))
    });
    let mut search = Search {
        fit,
        cards: cards.to_vec(),
        placed: Placed::default(),
        loss: 0.0,
        larger: 0,
        steps: 0,
    };
    if !search.place(&together) {
        return Err(occupied(&fit, cards, &together));
    }
    for (at, container) in containers.iter().enumerate() {
        if container.kind == ContainerKind::Init {
            let cost = place_init(&fit, at, cards, &mut search.placed)?;
            search.loss += cost.loss;
            search.larger += cost.larger;
        }
    }
    Ok(search.finish())
}

/// The devices that containers of some kinds need.
fn needs(containers: &[ContainerDemand], is_wanted: impl Fn(ContainerKind) -> bool) -> Vec<Need> {
    let wanted = containers
        .iter()
        .enumerate()
        .filter(|(_, container)| is_wanted(container.kind));
    wanted
        .flat_map(|(at, container)| {
            (0..container.count as usize).map(move |device| Need {
                container: at,
                device,
            })
        })
        .collect()
}

impl Search<'_, '_> {
    /// Finds places for all needs.
    fn place(&mut self, needs: &[Need]) -> bool {
        let Some((need, rest)) = needs.split_first() else {
            return true;
        };
        for choice in device_choices(&self.fit, &self.cards, &self.placed, *need) {
            let device = choice.device(&self.cards);
            let DeviceChoice {
                card, loss, larger, ..
            } = choice;
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return false;
            }
            self.cards[card].take(&device);
            self.placed.insert(*need, device.clone());
            self.loss += loss;
            self.larger += u32::from(larger > 0);
            if self.place(rest) {
                return true;
            }
            self.loss -= loss;
            self.larger -= u32::from(larger > 0);
            self.placed.remove(*need);
            self.cards[card].give_back(&device);
        }
        false
    }

    fn finish(self) -> Plan {
        let containers = self.fit.demand.containers.iter().enumerate();
        let containers = containers.map(|(at, container)| ContainerClaim {
            name: container.name.clone(),
            kind: container.kind,
            devices: self.placed.of_container(at).cloned().collect(),
        });
        Plan {
            claim: Claim {
                containers: containers.collect(),
            },
            mode: self.fit.mode,
            suitability: self.suitability(),
            larger: self.larger,
            loss: self.loss,
            changes_mode: false,
            used: 0.0,
        }
    }

    fn suitability(&self) -> Suitability {
        if self.fit.mode == VgpuMode::HamiCore {
            return Suitability::Share;
        }
        let parts = self.placed.iter().filter_map(|(need, device)| {
            let container = &self.fit.demand.containers[need.container];
            let card = self.cards.iter().find(|c| c.gpu.uuid == device.gpu())?;
            let offer = card.model.offer(&device.slot()?.profile)?;
            // An init container may run on a far larger device that the pod holds anyway.
            let counts = container.kind != ContainerKind::Init;
            counts.then(|| asked_part(container, card.model, offer))
        });
        if parts.fold(1.0, f64::min) >= 0.5 {
            Suitability::CloseInstance
        } else {
            Suitability::LooseInstance
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{config::Config, demand::Demand, fixtures};

    fn plan(mode: VgpuMode, demand: &Demand) -> Result<Plan, Refusal> {
        let model = fixtures::a100_80gb();
        let node = fixtures::node("n", &model, 2, mode);
        let cards: Vec<Card<'_>> = node
            .gpus
            .iter()
            .map(|gpu| Card::new(gpu, &model, None))
            .collect();
        let fit = Fit {
            demand,
            config: &Config::default(),
            mode,
        };
        search(fit, &cards)
    }

    fn devices(count: u32, mib: u64) -> Demand {
        let mut demand = fixtures::demand(mib);
        demand.containers[0].count = count;
        demand
    }

    #[test]
    fn half_of_an_instance_is_close_enough() {
        let suitability = |mode, mib| plan(mode, &devices(1, mib)).unwrap().suitability;
        assert_eq!(
            suitability(VgpuMode::Mig, 9_000),
            Suitability::CloseInstance
        );
        assert_eq!(
            suitability(VgpuMode::Mig, 2_000),
            Suitability::LooseInstance
        );
        assert_eq!(suitability(VgpuMode::HamiCore, 2_000), Suitability::Share);
    }

    #[test]
    fn all_devices_find_a_place_or_none_is_taken() {
        let plan = |count| plan(VgpuMode::Mig, &devices(count, 39_000));
        assert_eq!(plan(4).unwrap().claim.slots().count(), 4);
        let refusal = plan(5).unwrap_err().to_string();
        assert!(refusal.contains("5 x 3g.40gb or 4g.40gb"), "{refusal}");
    }

    #[test]
    fn a_container_has_one_share_per_gpu() {
        let plan = |count| plan(VgpuMode::HamiCore, &devices(count, 1_000));
        assert_eq!(plan(2).unwrap().claim.devices().count(), 2);
        assert!(plan(3).is_err());
    }
}
