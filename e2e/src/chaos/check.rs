//! What must hold, whatever is done to the cluster. Pure: what one look saw goes in, what is violated comes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use domain::claim::Slot;
use nodeagent::gpus::{
    instances::QUARANTINE_AFTER,
    retry::{MAX_CHECK_INTERVAL_MS, destroy_interval},
};

/// How long an idle instance is kept in a run.
pub(super) const IDLE_TTL: Duration = Duration::from_secs(2);
/// The times that a disturbance may let a destruction fail: fewer than make an agent quarantine the instance, which is
/// the storm's.
pub(super) const FEW_FAILURES: std::ops::RangeInclusive<u32> = 1..=QUARANTINE_AFTER - 1;
/// How long an agent may not learn that a claim is over, or not act on it: processes that end late, a restart, a frozen
/// agent, an outage of the API server.
const DISTURBED: Duration = Duration::from_secs(20);

/// How long an instance of ours may be without a claim.
///
/// Processes may end just after a check: the agent finds that by the next one. Then the instance is kept while it is idle,
/// and then its destruction may fail a few times.
pub(super) fn unclaimed_limit() -> Duration {
    let check = Duration::from_millis(MAX_CHECK_INTERVAL_MS);
    DISTURBED + check + IDLE_TTL + few_failures()
}

/// The pauses after the failures that a disturbance may cause.
fn few_failures() -> Duration {
    Duration::from_millis(FEW_FAILURES.map(destroy_interval).sum())
}

/// The pause after which the agent tries again to destroy a quarantined instance.
pub(super) fn quarantine_interval() -> Duration {
    Duration::from_millis(destroy_interval(QUARANTINE_AFTER))
}

/// How long what a node publishes may differ from its cards while its agent and the API server are up.
pub(super) const STALE: Duration = Duration::from_secs(5);

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) node: String,
    /// UUID of the card.
    pub(super) gpu: String,
    /// First memory slice.
    pub(super) start: u8,
    /// Memory slices.
    pub(super) size: u8,
}

/// An instance as it is behind NVML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    /// GPU instance id and serial number: no two that ever were have the same.
    pub(super) identity: (u32, u32),
    /// Name of its profile.
    pub(super) profile: String,
    /// UUIDs of its compute instances.
    pub(super) compute: Vec<String>,
}

/// A pod with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) node: String,
    /// The instances that it claims.
    pub(super) slots: Vec<Slot>,
    /// Its containers, when all run and did so before and after the look at the cards.
    pub(super) running: Option<Vec<Container>>,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// Id, another after each restart.
    pub(super) id: String,
    /// UUIDs of the devices that it was created with, where that can be seen.
    pub(super) devices: Option<BTreeSet<String>>,
}

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// When, since the start.
    pub(super) at: Duration,
    pub(super) pods: Vec<Pod>,
    /// What was claimed just before the look at the cards; `pods` is what came after it.
    pub(super) claimed: BTreeSet<Place>,
    pub(super) instances: BTreeMap<Place, Instance>,
    /// What each node publishes whose agent could have done so.
    pub(super) published: BTreeMap<String, BTreeSet<Place>>,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// Two pods claim the same slices.
    Shared { pods: [String; 2], gpu: String },
    /// A pod runs without an instance that it claims.
    Missing { pod: String, place: Place },
    /// What is at a running pod's place is not what it claims.
    Other {
        pod: String,
        place: Place,
        found: String,
    },
    /// A running pod's instance was exchanged.
    Exchanged { pod: String, place: Place },
    /// A running pod's container was started anew.
    Restarted { pod: String },
    /// A container was created with other devices than its pod's instances.
    Devices { pod: String, found: String },
    /// An instance of ours has had no pod for too long.
    Unaccounted { place: Place },
    /// The instance that somebody else made is not as it was.
    Foreign,
    /// An instance that exists is not published.
    Unpublished { place: Place },
    /// An instance is published that does not exist.
    Ghost { place: Place },
    /// A daemon ended that nobody had ended.
    Ended { process: String },
    /// Something is left when everything was deleted.
    Left { what: String },
}

/// Looks and remembers.
#[derive(Default)]
pub(super) struct Checker {
    /// Of each running pod: its instances and the ids of its containers.
    known: BTreeMap<String, Known>,
    /// Since when an instance has had no pod.
    unaccounted: BTreeMap<(Place, (u32, u32)), Duration>,
    /// Since when a place is published and not there (`true`), or there and not published.
    unequal: BTreeMap<(Place, bool), Duration>,
    /// Where somebody else's instance is, and which it is.
    foreign: Option<(Place, (u32, u32))>,
    /// Until when no instance of a card (node, UUID) can be destroyed.
    storms: BTreeMap<(String, String), Duration>,
    /// Pods that ran when their node was rebooted.
    rebooted: BTreeSet<String>,
    /// Pods that were seen running, and those of them that ran again after a reboot.
    pub(super) ran: BTreeSet<String>,
    pub(super) back: BTreeSet<String>,
    /// The longest that an instance had no pod, on a card without a storm and on one with.
    pub(super) longest_unaccounted: [Duration; 2],
    /// The longest that what is published was not what is.
    pub(super) longest_unequal: Duration,
}

struct Known {
    node: String,
    identities: BTreeMap<Place, (u32, u32)>,
    containers: Vec<String>,
}

impl Pod {
    /// Where its instances should be.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.slots.iter().map(|slot| Place::of(&self.node, slot))
    }
}

impl Place {
    fn of(node: &str, slot: &Slot) -> Self {
        Self {
            node: node.to_owned(),
            gpu: slot.gpu.clone(),
            start: slot.start,
            size: slot.size,
        }
    }

    fn card(&self) -> (String, String) {
        (self.node.clone(), self.gpu.clone())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            gpu,
            start,
            size,
        } = self;
        write!(f, "slices {start}+{size} of {gpu} on {node}")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { pods: [a, b], gpu } => write!(f, "{a} and {b} share slices of {gpu}"),
            Self::Missing { pod, place } => write!(f, "{pod} runs without its {place}"),
            Self::Other { pod, place, found } => {
                write!(
                    f,
                    "{pod} runs with {found} at {place}, which it does not claim"
                )
            }
            Self::Exchanged { pod, place } => {
                write!(
                    f,
                    "{pod} runs and has another instance than before at {place}"
                )
            }
            Self::Restarted { pod } => write!(f, "a container of {pod} was started anew"),
            Self::Devices { pod, found } => {
                write!(
                    f,
                    "a container of {pod} was created with {found}, not with its instances"
                )
            }
            Self::Unaccounted { place } => write!(f, "nobody claims what is at {place}"),
            Self::Foreign => write!(f, "somebody else's instance is not as it was"),
            Self::Unpublished { place } => write!(f, "{place} are taken and not published"),
            Self::Ghost { place } => write!(f, "{place} are published and not taken"),
            Self::Ended { process } => write!(f, "{process} ended by itself"),
            Self::Left { what } => write!(f, "left at the end: {what}"),
        }
    }
}

impl Checker {
    /// Somebody else's instance is this one from now on.
    pub(super) fn expect_foreign(&mut self, place: Place, identity: (u32, u32)) {
        self.foreign = Some((place, identity));
    }

    /// A node was rebooted: its pods have other instances and containers from now on.
    pub(super) fn reboot(&mut self, node: &str) {
        let here = self.known.extract_if(.., |_, known| known.node == node);
        self.rebooted.extend(here.map(|(uid, _)| uid));
    }

    /// Nobody could look: what is published may be old.
    pub(super) fn saw_nothing(&mut self) {
        self.unequal.clear();
    }

    /// No instance of this card can be destroyed until then.
    pub(super) fn storm(&mut self, node: &str, gpu: &str, until: Duration) {
        self.storms.insert((node.to_owned(), gpu.to_owned()), until);
    }

    /// What a look shows to be broken.
    pub(super) fn look(&mut self, look: &Look) -> Vec<Violation> {
        let mut found = shared(&look.pods);
        for pod in &look.pods {
            self.running(pod, &look.instances, &mut found);
        }
        self.known
            .retain(|uid, _| look.pods.iter().any(|pod| pod.uid == *uid));
        self.account(look, &mut found);
        self.compare(look, &mut found);
        let foreign = self.foreign.as_ref();
        if foreign.is_some_and(|(place, identity)| {
            look.instances.get(place).map(|is| is.identity) != Some(*identity)
        }) {
            found.push(Violation::Foreign);
        }
        found
    }

    /// A running pod has exactly its instances, the same ones all its life.
    fn running(
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
        let devices: Option<Vec<_>> = containers.iter().map(|c| c.devices.as_ref()).collect();
        let devices: Option<BTreeSet<_>> = devices.map(|all| all.into_iter().flatten().collect());
        if let Some(devices) = devices
            && !pod.slots.is_empty()
            && devices != uuids.iter().collect()
        {
            let words: Vec<_> = devices.into_iter().map(String::as_str).collect();
            found.push(Violation::Devices {
                pod: name(),
                found: words.join(" "),
            });
        }
        let ids: Vec<String> = containers.iter().map(|c| c.id.clone()).collect();
        if let Some(known) = self.known.get(&pod.uid) {
            if known.containers != ids {
                found.push(Violation::Restarted { pod: name() });
            }
            let exchanged = identities.iter().filter(|(place, identity)| {
                let before = known.identities.get(place);
                before.is_some_and(|before| before != *identity)
            });
            found.extend(exchanged.map(|(place, _)| Violation::Exchanged {
                pod: name(),
                place: place.clone(),
            }));
        }
        let known = Known {
            node: pod.node.clone(),
            identities,
            containers: ids,
        };
        self.known.insert(pod.uid.clone(), known);
    }

    /// Nothing is without a pod for long but what is somebody else's.
    fn account(&mut self, look: &Look, found: &mut Vec<Violation>) {
        let claimed: BTreeSet<Place> = look.pods.iter().flat_map(Pod::places).collect();
        let mut now = BTreeMap::new();
        for (place, instance) in &look.instances {
            let key = (place.clone(), instance.identity);
            let foreign = self.foreign.as_ref() == Some(&key);
            if foreign || claimed.contains(place) || look.claimed.contains(place) {
                continue;
            }
            let since = self.unaccounted.get(&key).copied().unwrap_or(look.at);
            let storm = self.storms.get(&place.card());
            let storm = storm.filter(|end| since < **end);
            let last = storm.map_or(since, |end| *end + quarantine_interval()) + unclaimed_limit();
            let longest = &mut self.longest_unaccounted[usize::from(storm.is_some())];
            *longest = (*longest).max(look.at.saturating_sub(since));
            if look.at > last {
                found.push(Violation::Unaccounted {
                    place: place.clone(),
                });
            }
            now.insert(key, since);
        }
        self.unaccounted = now;
    }

    /// What a node publishes is what is on its cards. Each place has its own time: the cards change all the time.
    fn compare(&mut self, look: &Look, found: &mut Vec<Violation>) {
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
                if long > STALE {
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

/// The pairs of pods that claim the same slices.
fn shared(pods: &[Pod]) -> Vec<Violation> {
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

#[cfg(test)]
mod tests {
    use nodeagent::gpus::retry::check_interval;

    use super::*;

    const NODE: &str = "n";
    const GPU: &str = "GPU-1";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn slot(start: u8, size: u8) -> Slot {
        Slot {
            gpu: GPU.to_owned(),
            profile: format!("{size}g"),
            start,
            size,
            mem: 1,
        }
    }

    fn place(start: u8, size: u8) -> Place {
        Place::of(NODE, &slot(start, size))
    }

    fn instance(start: u8, size: u8, serial: u32) -> (Place, Instance) {
        let instance = Instance {
            identity: (u32::from(start) + 7, serial),
            profile: format!("{size}g"),
            compute: vec![format!("MIG-{start}")],
        };
        (place(start, size), instance)
    }

    fn pod(name: &str, start: u8, size: u8) -> Pod {
        let container = Container {
            id: format!("{name}/0"),
            devices: Some([format!("MIG-{start}")].into()),
        };
        Pod {
            uid: format!("uid-{name}"),
            name: name.to_owned(),
            node: NODE.to_owned(),
            slots: vec![slot(start, size)],
            running: Some(vec![container]),
        }
    }

    /// Two pods with their instances, and somebody else's instance, all published.
    fn well(at: u64) -> Look {
        let instances: BTreeMap<_, _> =
            [instance(0, 1, 1), instance(4, 2, 2), instance(7, 1, 3)].into();
        Look {
            at: seconds(at),
            pods: vec![pod("a", 0, 1), pod("b", 4, 2)],
            claimed: [place(0, 1), place(4, 2)].into(),
            published: [(NODE.to_owned(), instances.keys().cloned().collect())].into(),
            instances,
        }
    }

    fn checker() -> Checker {
        let mut checker = Checker::default();
        checker.expect_foreign(place(7, 1), (14, 3));
        assert_eq!(checker.look(&well(0)), []);
        checker
    }

    /// What one more look shows.
    fn after(change: impl FnOnce(&mut Look)) -> Vec<Violation> {
        let mut look = well(1);
        change(&mut look);
        checker().look(&look)
    }

    #[test]
    fn what_is_well_is_no_violation_however_long() {
        let mut checker = checker();
        for at in [1, 10, 1_000] {
            assert_eq!(checker.look(&well(at)), []);
        }
        assert_eq!(checker.ran.len(), 2);
    }

    #[test]
    fn two_pods_with_one_slice() {
        let found = after(|look| {
            look.pods[1].slots[0] = slot(0, 2);
            look.pods[1].running = None;
        });
        let pods = ["b".to_owned(), "a".to_owned()];
        let gpu = GPU.to_owned();
        assert_eq!(found, [Violation::Shared { pods, gpu }]);
    }

    #[test]
    fn a_running_pod_without_its_instance() {
        let found = after(|look| {
            look.instances.remove(&place(0, 1));
            look.published.clear();
            look.pods[0].running.as_mut().unwrap()[0].devices = None;
        });
        let (pod, place) = ("a".to_owned(), place(0, 1));
        assert_eq!(found, [Violation::Missing { pod, place }]);
    }

    #[test]
    fn a_running_pod_with_another_profile_or_without_a_compute_instance() {
        for change in [
            (|instance| instance.profile = "1g+me".to_owned()) as fn(&mut Instance),
            |instance| instance.compute.push("MIG-9".to_owned()),
            |instance| instance.compute.clear(),
        ] {
            let found = after(|look| {
                change(look.instances.get_mut(&place(0, 1)).unwrap());
                look.pods[0].running.as_mut().unwrap()[0].devices = None;
            });
            assert!(matches!(&found[..], [Violation::Other { .. }]), "{found:?}");
        }
    }

    #[test]
    fn an_instance_that_was_exchanged_under_a_running_pod() {
        let exchange = |look: &mut Look| {
            look.instances.extend([instance(0, 1, 9)]);
        };
        let (pod, place) = ("a".to_owned(), place(0, 1));
        assert_eq!(after(exchange), [Violation::Exchanged { pod, place }]);
        // Which is as it should be after a reboot.
        let mut checker = checker();
        checker.reboot("another");
        checker.reboot(NODE);
        let mut look = well(1);
        exchange(&mut look);
        look.pods[0].running.as_mut().unwrap()[0].id = "a/1".to_owned();
        assert_eq!(checker.look(&look), []);
        assert_eq!(checker.back.len(), 2);
    }

    #[test]
    fn a_container_that_was_started_anew() {
        let found = after(|look| {
            look.pods[0].running.as_mut().unwrap()[0].id = "a/1".to_owned();
        });
        let pod = "a".to_owned();
        assert_eq!(found, [Violation::Restarted { pod }]);
    }

    #[test]
    fn a_container_with_the_devices_of_another() {
        let found = after(|look| {
            let devices = &mut look.pods[0].running.as_mut().unwrap()[0].devices;
            *devices = Some(["MIG-4".to_owned()].into());
        });
        let (pod, found_there) = ("a".to_owned(), "MIG-4".to_owned());
        let expected = Violation::Devices {
            pod,
            found: found_there,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn an_instance_without_a_pod_for_long() {
        let look = |at| {
            let mut look = well(at);
            look.pods.remove(0);
            look.claimed.remove(&place(0, 1));
            look
        };
        let violation = [Violation::Unaccounted { place: place(0, 1) }];
        let limit = unclaimed_limit().as_secs();
        let mut first = checker();
        assert_eq!(first.look(&look(1)), []);
        assert_eq!(first.look(&look(1 + limit)), []);
        assert_eq!(first.look(&look(2 + limit)), violation);
        // Claimed in between: the time starts anew.
        let mut second = checker();
        second.look(&look(1));
        second.look(&well(2));
        assert_eq!(second.look(&look(2 + limit)), []);
        // While its card lets nothing be destroyed, and until quarantine is over.
        let mut third = checker();
        third.storm(NODE, GPU, seconds(15));
        third.storm(NODE, "GPU-2", seconds(500));
        third.look(&look(1));
        let limit = 15 + limit + quarantine_interval().as_secs();
        assert_eq!(third.look(&look(limit)), []);
        assert_eq!(third.look(&look(limit + 1)), violation);
        // A storm that was over before is no excuse.
        let mut fourth = checker();
        fourth.storm(NODE, GPU, seconds(1));
        fourth.look(&look(1));
        assert_eq!(fourth.look(&look(limit)).len(), 1);
    }

    /// Issue 11: on two busy cores a pod's processes ended just after the agent's check at 7 s. The next one was at 15 s,
    /// the instance was idle for 2 s, and five attempts to destroy it failed: 23 s without a claim, and all as designed.
    #[test]
    fn an_instance_whose_processes_end_late_and_whose_destruction_fails_a_few_times() {
        let mut checks = vec![0];
        for number in 0..6 {
            checks.push(checks[number] + check_interval(u32::try_from(number).unwrap()));
        }
        assert_eq!(checks, [0, 1_000, 3_000, 7_000, 15_000, 31_000, 47_000]);
        let destroyed = |check: u64| Duration::from_millis(check) + IDLE_TTL + few_failures();
        assert_eq!(destroyed(15_000), Duration::from_millis(23_200));
        // The same with the latest processes that are allowed for.
        assert!(destroyed(31_000) < unclaimed_limit());
        let look = |at| {
            let mut look = well(at);
            look.instances.extend([instance(1, 1, 4)]);
            let published = look.instances.keys().cloned().collect();
            look.published = [(NODE.to_owned(), published)].into();
            look
        };
        let mut checker = checker();
        // As in that run: the storm rages on another GPU.
        checker.storm(NODE, "GPU-2", seconds(158));
        let gone = 147;
        for at in gone..=gone + destroyed(15_000).as_secs() {
            assert_eq!(checker.look(&look(at)), [], "at {at} s");
        }
        let late = gone + unclaimed_limit().as_secs() + 1;
        let place = place(1, 1);
        assert_eq!(
            checker.look(&look(late)),
            [Violation::Unaccounted { place }]
        );
    }

    #[test]
    fn somebody_elses_instance_that_is_gone_or_another() {
        let gone = after(|look| {
            look.instances.remove(&place(7, 1));
            look.published.clear();
        });
        assert_eq!(gone, [Violation::Foreign]);
        let another = after(|look| look.instances.extend([instance(7, 1, 8)]));
        assert_eq!(another, [Violation::Foreign]);
    }

    #[test]
    fn what_is_published_and_not_there_and_the_other_way_round() {
        let unpublished = |at| {
            let mut look = well(at);
            look.published.get_mut(NODE).unwrap().remove(&place(4, 2));
            look
        };
        let ghost = |at| {
            let mut look = well(at);
            look.published.get_mut(NODE).unwrap().insert(place(2, 1));
            look
        };
        let limit = 1 + STALE.as_secs();
        let mut first = checker();
        assert_eq!(first.look(&unpublished(1)), []);
        assert_eq!(first.look(&unpublished(limit)), []);
        let place_of_b = place(4, 2);
        let expected = Violation::Unpublished { place: place_of_b };
        assert_eq!(first.look(&unpublished(limit + 1)), [expected]);
        let mut second = checker();
        second.look(&ghost(1));
        let expected = Violation::Ghost { place: place(2, 1) };
        assert_eq!(second.look(&ghost(limit + 1)), [expected]);
        // An agent that is away, or was for one look, could not know.
        let mut third = checker();
        third.look(&ghost(1));
        let mut away = ghost(2);
        away.published.clear();
        third.look(&away);
        assert_eq!(third.look(&ghost(limit + 1)), []);
    }
}
