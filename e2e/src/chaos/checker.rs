//! What must hold, whatever is done to the cluster. Pure: a look goes in, violations come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    limits::{STALE_LIMIT, quarantine_interval, unclaimed_limit},
    look::{Container, Instance, Look, Place, Pod},
    violation::Violation,
};

#[cfg(test)]
mod tests;

/// Checks one look after the other, and remembers what it needs of the earlier ones.
#[derive(Default)]
pub(super) struct Checker {
    /// Of each running pod: its instances and the ids of its containers.
    known: BTreeMap<String, Known>,
    /// Since when no pod has claimed an instance.
    unclaimed: BTreeMap<(Place, (u32, u32)), Duration>,
    /// Since when a place is published and not there (`true`), or there and not published.
    unequal: BTreeMap<(Place, bool), Duration>,
    /// Where somebody else's instance is, and which it is.
    foreign: Option<(Place, (u32, u32))>,
    /// Until when no instance of a GPU (node, UUID) can be destroyed.
    storms: BTreeMap<(String, String), Duration>,
    /// Pods that ran when their node was rebooted.
    rebooted: BTreeSet<String>,
    /// Pods that were seen running, and those of them that ran again after a reboot.
    pub(super) ran: BTreeSet<String>,
    pub(super) back: BTreeSet<String>,
    /// The longest time that no pod claimed an instance: on a GPU without a storm, and with one.
    pub(super) longest_unclaimed: [Duration; 2],
    /// The longest time that what was published differed from what existed.
    pub(super) longest_unequal: Duration,
}

/// What is known of a running pod.
struct Known {
    node: String,
    identities: BTreeMap<Place, (u32, u32)>,
    containers: Vec<String>,
}

impl Checker {
    /// The foreign instance is this one from now on.
    pub(super) fn expect_foreign(&mut self, place: Place, identity: (u32, u32)) {
        self.foreign = Some((place, identity));
    }

    /// A node was rebooted: its pods have other instances and containers from now on.
    pub(super) fn reboot(&mut self, node: &str) {
        let here = self.known.extract_if(.., |_, known| known.node == node);
        self.rebooted.extend(here.map(|(uid, _)| uid));
    }

    /// No look was possible: what is published may be old.
    pub(super) fn saw_nothing(&mut self) {
        self.unequal.clear();
    }

    /// No instance of this GPU can be destroyed until then.
    pub(super) fn storm(&mut self, node: &str, gpu: &str, until: Duration) {
        self.storms.insert((node.to_owned(), gpu.to_owned()), until);
    }

    /// The rules that a look shows to be broken.
    pub(super) fn look(&mut self, look: &Look) -> Vec<Violation> {
        let mut found = shared_slices(&look.pods);
        for pod in &look.pods {
            self.check_running(pod, &look.instances, &mut found);
        }
        self.known
            .retain(|uid, _| look.pods.iter().any(|pod| pod.uid == *uid));
        self.check_claims(look, &mut found);
        self.check_published(look, &mut found);
        let foreign = self.foreign.as_ref();
        if foreign.is_some_and(|(place, identity)| {
            look.instances.get(place).map(|is| is.identity) != Some(*identity)
        }) {
            found.push(Violation::Foreign);
        }
        found
    }

    /// A running pod has exactly its instances, the same ones all its life.
    fn check_running(
        &mut self,
        pod: &Pod,
        instances: &BTreeMap<Place, Instance>,
        found: &mut Vec<Violation>,
    ) {
        let Some(containers) = &pod.running else {
            return;
        };
        self.ran.insert(pod.uid.clone());
        if self.rebooted.remove(&pod.uid) {
            self.back.insert(pod.uid.clone());
        }
        let (mut identities, mut uuids) = (BTreeMap::new(), BTreeSet::new());
        let name = || pod.name.clone();
        for slot in &pod.slots {
            let place = Place::of(&pod.node, slot);
            let Some(instance) = instances.get(&place) else {
                found.push(Violation::Missing { pod: name(), place });
                continue;
            };
            if instance.profile != slot.profile || instance.compute.len() != 1 {
                let (profile, count) = (&instance.profile, instance.compute.len());
                let what = format!("a {profile} of {count} compute instances");
                found.push(Violation::Other {
                    pod: name(),
                    place: place.clone(),
                    found: what,
                });
            }
            uuids.extend(instance.compute.iter().cloned());
            identities.insert(place, instance.identity);
        }
        found.extend(wrong_devices(pod, containers, &uuids));
        let ids: Vec<String> = containers.iter().map(|c| c.id.clone()).collect();
        if let Some(known) = self.known.get(&pod.uid) {
            found.extend(known.changes(pod, &identities, &ids));
        }
        let known = Known {
            node: pod.node.clone(),
            identities,
            containers: ids,
        };
        self.known.insert(pod.uid.clone(), known);
    }

    /// Every instance but the foreign one is claimed by a pod, or is gone soon.
    fn check_claims(&mut self, look: &Look, found: &mut Vec<Violation>) {
        let claimed: BTreeSet<Place> = look.pods.iter().flat_map(Pod::places).collect();
        let mut now = BTreeMap::new();
        for (place, instance) in &look.instances {
            let key = (place.clone(), instance.identity);
            let foreign = self.foreign.as_ref() == Some(&key);
            if foreign || claimed.contains(place) || look.claimed.contains(place) {
                continue;
            }
            let since = self.unclaimed.get(&key).copied().unwrap_or(look.at);
            let storm = self.storms.get(&place.gpu_key());
            let storm = storm.filter(|end| since < **end);
            let last = storm.map_or(since, |end| *end + quarantine_interval()) + unclaimed_limit();
            let longest = &mut self.longest_unclaimed[usize::from(storm.is_some())];
            *longest = (*longest).max(look.at.saturating_sub(since));
            if look.at > last {
                found.push(Violation::Unclaimed {
                    place: place.clone(),
                });
            }
            now.insert(key, since);
        }
        self.unclaimed = now;
    }

    /// What a node publishes is what exists on its GPUs. The time counts per place, because the GPUs change all the time.
    fn check_published(&mut self, look: &Look, found: &mut Vec<Violation>) {
        let mut now = BTreeMap::new();
        for (node, published) in &look.published {
            let there: BTreeSet<Place> = look
                .instances
                .keys()
                .filter(|place| place.node == *node)
                .cloned()
                .collect();
            for place in published.symmetric_difference(&there) {
                let key = (place.clone(), published.contains(place));
                let since = self.unequal.get(&key).copied().unwrap_or(look.at);
                let long = look.at.saturating_sub(since);
                self.longest_unequal = self.longest_unequal.max(long);
                if long > STALE_LIMIT {
                    let place = place.clone();
                    found.push(if key.1 {
                        Violation::Ghost { place }
                    } else {
                        Violation::Unpublished { place }
                    });
                }
                now.insert(key, since);
            }
        }
        self.unequal = now;
    }
}

impl Known {
    /// What changed of a pod although it went on running.
    fn changes(
        &self,
        pod: &Pod,
        identities: &BTreeMap<Place, (u32, u32)>,
        containers: &[String],
    ) -> Vec<Violation> {
        let name = || pod.name.clone();
        let mut found = Vec::new();
        if self.containers != containers {
            found.push(Violation::Restarted { pod: name() });
        }
        let replaced = identities.iter().filter(|(place, identity)| {
            let before = self.identities.get(place);
            before.is_some_and(|before| before != *identity)
        });
        found.extend(replaced.map(|(place, _)| Violation::Exchanged {
            pod: name(),
            place: place.clone(),
        }));
        found
    }
}

/// The violation when the containers were not created with exactly these devices.
fn wrong_devices(
    pod: &Pod,
    containers: &[Container],
    uuids: &BTreeSet<String>,
) -> Option<Violation> {
    let devices: Option<Vec<_>> = containers.iter().map(|c| c.devices.as_ref()).collect();
    let devices: BTreeSet<&String> = devices?.into_iter().flatten().collect();
    if pod.slots.is_empty() || devices == uuids.iter().collect() {
        return None;
    }
    let words: Vec<_> = devices.into_iter().map(String::as_str).collect();
    Some(Violation::Devices {
        pod: pod.name.clone(),
        found: words.join(" "),
    })
}

/// The pairs of pods that claim the same slices.
fn shared_slices(pods: &[Pod]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        for other in &pods[..number] {
            let both = pod.slots.iter().find(|slot| {
                let mut slots = other.slots.iter();
                slots.any(|known| known.gpu == slot.gpu && known.slices().overlaps(slot.slices()))
            });
            found.extend(both.map(|slot| Violation::Shared {
                pods: [pod.name.clone(), other.name.clone()],
                gpu: slot.gpu.clone(),
            }));
        }
    }
    found
}
