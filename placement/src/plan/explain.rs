//! Where a refusal gets its facts: what was wanted, what is in the way, and what would fit now.

use std::collections::BTreeMap;

use domain::{
    demand::ContainerDemand,
    gpu::{Instance, InstanceState},
    mode::VgpuMode,
    refusal::{Needs, Refusal},
    slices::Slices,
};

use super::{fit::Fit, geometry::first_geometry, placed::Need};
use crate::card::{Candidate, Card};

/// The refusal for needs that find no place on these cards now.
pub(super) fn occupied(fit: &Fit<'_>, cards: &[Card<'_>], unmet: &[Need]) -> Refusal {
    let mut counted: BTreeMap<usize, u32> = BTreeMap::new();
    for need in unmet {
        *counted.entry(need.container).or_default() += 1;
    }
    let mut wanted = Vec::new();
    let mut needs: Option<Needs> = None;
    for (container, count) in counted {
        let container = &fit.demand.containers[container];
        let what = match fit.mode {
            VgpuMode::Mig => profile_names(fit, cards, container),
            VgpuMode::HamiCore => format!("{} MiB", fit.smallest_mib(cards, container)),
        };
        if fit.mode == VgpuMode::Mig {
            needs = needs.or_else(|| fragmentation(fit, cards, container));
        }
        let what = if count == 1 {
            what
        } else {
            format!("{count} x {what}")
        };
        if !wanted.contains(&what) {
            wanted.push(what);
        }
    }
    let fits = largest_fit(fit, cards);
    Refusal::Occupied {
        wanted: wanted.join(" + "),
        // Where no profile may start at all the card is full: its last slice has no compute slice.
        needs: needs.filter(|_| fits.is_some()),
        fits,
    }
}

/// `3g.40gb or 4g.40gb`.
fn profile_names(fit: &Fit<'_>, cards: &[Card<'_>], container: &ContainerDemand) -> String {
    let mut names: Vec<&str> = cards
        .iter()
        .flat_map(|card| fit.smallest(container, card.model))
        .map(|offer| offer.profile.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.join(" or ")
}

/// What a container needs where it would only have to clear away the fewest.
fn fragmentation(fit: &Fit<'_>, cards: &[Card<'_>], container: &ContainerDemand) -> Option<Needs> {
    let fragmented = cards
        .iter()
        .filter_map(|card| needs_of(fit, container, card));
    fragmented.min_by_key(|needs| needs.blockers.len())
}

/// What a container needs of a card that has enough free slices, but not side by side where they must be.
fn needs_of(fit: &Fit<'_>, container: &ContainerDemand, card: &Card<'_>) -> Option<Needs> {
    let free = u32::from(card.model.memory_slices).saturating_sub(card.slices().count());
    let offers = fit.smallest(container, card.model);
    let size = offers.first()?.size;
    let is_blocked = offers.iter().all(|o| card.free_starts(o).next().is_none());
    if !is_blocked || free < u32::from(size) {
        return None;
    }
    let mut starts: Vec<u8> = offers.iter().flat_map(|o| o.starts.clone()).collect();
    starts.sort_unstable();
    starts.dedup();
    let windows = starts.iter().map(|start| Slices::span(*start, size));
    let blockers = windows
        .map(|window| blockers(card, window))
        .min_by_key(Vec::len);
    Some(Needs {
        slices: size,
        starts,
        blockers: blockers.unwrap_or_default(),
    })
}

/// Who has an instance on a window of a card.
fn blockers(card: &Card<'_>, window: Slices) -> Vec<String> {
    let stands = |instance: &&Instance| {
        instance.state != InstanceState::Idle && instance.slices().overlaps(window)
    };
    let live = card.gpu.instances.iter().filter(stands);
    let mut names: Vec<String> = live
        .map(|instance| match (&instance.pod, instance.state) {
            (Some(pod), _) => pod.clone(),
            (None, InstanceState::Quarantined) => "a quarantined instance".to_owned(),
            (None, _) => "a foreign instance".to_owned(),
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The largest single device that would fit now, in words.
fn largest_fit(fit: &Fit<'_>, cards: &[Card<'_>]) -> Option<String> {
    match fit.mode {
        VgpuMode::Mig => {
            let offers = cards
                .iter()
                .flat_map(|card| card.model.offers.iter().map(move |offer| (card, offer)));
            let free = offers.filter(|(card, offer)| {
                let known = fit.config.geometries(card.model);
                let is_allowed = |candidate: &Candidate<'_>| {
                    known
                        .as_ref()
                        .is_none_or(|known| first_geometry(known, card, candidate).is_some())
                };
                offer.is_plain() && card.candidates(&[offer]).iter().any(is_allowed)
            });
            free.max_by_key(|(_, offer)| (offer.memory_mib, offer.multiprocessors))
                .map(|(_, offer)| format!("{}, {} MiB", offer.profile, offer.memory_mib))
        }
        VgpuMode::HamiCore => cards
            .iter()
            .filter(|card| card.used_shares.count < card.gpu.max_shares)
            .map(|card| card.model.memory_mib.saturating_sub(card.used_shares.mem))
            .max()
            .filter(|mib| *mib > 0)
            .map(|mib| format!("{mib} MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{config::Config, fixtures};

    fn refusal(mode: VgpuMode, instances: &[(u8, u8)], mib: u64) -> String {
        let model = fixtures::a100_80gb();
        let mut node = fixtures::node("n", &model, 1, mode);
        node.gpus[0].instances = instances
            .iter()
            .map(|(start, size)| Instance {
                profile: String::new(),
                start: *start,
                size: *size,
                gpu_instance_id: 0,
                uuid: None,
                memory_mib: 0,
                state: InstanceState::InUse,
                pod: Some(format!("default/at-{start}")),
                pod_uid: None,
                container: None,
                reason: None,
            })
            .collect();
        let mut card = Card::new(&node.gpus[0], &model, None);
        for (start, size) in instances {
            card.hold(Slices::span(*start, *size), "");
        }
        let demand = fixtures::demand(mib);
        let fit = Fit {
            demand: &demand,
            config: &Config::default(),
            mode,
        };
        let unmet = Need {
            container: 0,
            device: 0,
        };
        format!("{:#}", occupied(&fit, &[card], &[unmet]))
    }

    #[test]
    fn a_fragmented_gpu_names_the_fewest_pods_in_the_way() {
        let said = refusal(VgpuMode::Mig, &[(0, 1), (1, 1), (4, 1)], 39_000);
        assert!(said.contains("3g.40gb or 4g.40gb"), "{said}");
        assert!(said.contains("default/at-4"), "{said}");
        assert!(!said.contains("default/at-0"), "{said}");
    }

    #[test]
    fn a_full_gpu_has_nobody_in_the_way() {
        let said = refusal(VgpuMode::Mig, &[(0, 8)], 39_000);
        assert!(!said.contains("default/"), "{said}");
        let said = refusal(VgpuMode::HamiCore, &[], 90_000);
        assert!(
            said.contains("90000 MiB") && said.contains("81920 MiB"),
            "{said}"
        );
    }
}
