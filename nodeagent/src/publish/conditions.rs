//! The conditions of the `GpuNode` object: whatever is wrong is in one of them, in words. Pure.

use domain::{
    gpu::{Gpu, InstanceState},
    keys,
    status::{Condition, REGISTERED},
};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::{
    gpus::inventory::Inventory, kubelet::registration::Registration, nvml::data::MemorySource,
};

/// A condition as it is now, without the time of its last change.
#[derive(Debug)]
pub(crate) struct CurrentCondition {
    kind: &'static str,
    is_true: bool,
    reason: &'static str,
    message: String,
}

impl CurrentCondition {
    pub(crate) fn new(
        kind: &'static str,
        is_true: bool,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self {
            kind,
            is_true,
            reason,
            message,
        }
    }

    /// The condition to publish. It keeps the time of its last change from the one published `before`.
    pub(crate) fn since(self, before: &[Condition], now: &jiff::Timestamp) -> Condition {
        let status = if self.is_true { "True" } else { "False" };
        let unchanged = before
            .iter()
            .find(|known| known.kind == self.kind && known.status == status);
        let last_transition_time = unchanged.map_or_else(
            || now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            |known| known.last_transition_time.clone(),
        );
        Condition {
            kind: self.kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            last_transition_time,
        }
    }
}

/// All conditions. `gpus` are those of the inventory as they are published.
pub(crate) fn current(
    inventory: &Inventory,
    node: Option<&Node>,
    registration: Registration,
    gpus: &[Gpu],
) -> Vec<CurrentCondition> {
    vec![
        ready(inventory),
        registered(inventory, registration),
        gpus_unhealthy(inventory, gpus),
        memory_unknown(inventory),
        mode_changing(inventory),
        quarantined(gpus),
        foreign_instances(gpus),
        other_mig_manager(node),
    ]
}

fn ready(inventory: &Inventory) -> CurrentCondition {
    let failures = [
        ("DriverUpgrade", &inventory.pause),
        ("NvmlHangs", &inventory.nvml_hang),
        ("NvmlFails", &inventory.nvml_failure),
        ("JournalFails", &inventory.journal_failure),
    ];
    let mut failures = failures.into_iter();
    let failure = failures.find_map(|(reason, failure)| Some((reason, failure.clone()?)));
    if let Some((reason, message)) = failure {
        return CurrentCondition::new("Ready", false, reason, message);
    }
    let message = "NVML answers for every GPU".to_owned();
    CurrentCondition::new("Ready", true, "NvmlAnswers", message)
}

fn registered(inventory: &Inventory, registration: Registration) -> CurrentCondition {
    if let Some(reason) = inventory.pause.clone()
        && registration != Registration::Ending
    {
        return CurrentCondition::new(REGISTERED, false, "DriverUpgrade", reason);
    }
    let (is_true, reason, message) = match registration {
        Registration::Registered => (
            true,
            "Registered",
            "the device plugin is registered with kubelet",
        ),
        Registration::Missing => (
            false,
            "NotRegistered",
            "the device plugin is not registered with kubelet yet; no pods are scheduled to this node",
        ),
        Registration::Ending => (
            false,
            "AgentEnds",
            "the agent is shutting down; no pods are scheduled to this node until it is back",
        ),
    };
    CurrentCondition::new(REGISTERED, is_true, reason, message.to_owned())
}

fn gpus_unhealthy(inventory: &Inventory, gpus: &[Gpu]) -> CurrentCondition {
    let unhealthy = gpus.iter().filter_map(|gpu| {
        let reason = gpu.unhealthy.as_ref()?;
        let state = inventory.state.gpus.get(&gpu.uuid)?;
        let reset = state.last_reset.as_ref();
        let reset = reset.map_or_else(String::new, |last| format!(" (reset: {})", last.outcome));
        Some(format!("GPU {}: {reason}{reset}", gpu.index))
    });
    any(
        "GpusUnhealthy",
        ("Found", list(unhealthy)),
        ("AllHealthy", "all GPUs are healthy"),
    )
}

fn memory_unknown(inventory: &Inventory) -> CurrentCondition {
    let of = |source| {
        let gpus = inventory
            .found
            .iter()
            .filter(move |gpu| gpu.memory == source);
        gpus.map(|gpu| gpu.index)
    };
    let unknown = of(MemorySource::Unknown).map(|index| {
        format!(
            "NVML does not report the memory of GPU {index}: it is only given whole; \
             to offer shares of it, set preConfiguredDeviceMemory to its MiB in the settings"
        )
    });
    let set = list(of(MemorySource::Settings).map(|index| {
        format!("the memory of GPU {index} is that of preConfiguredDeviceMemory: NVML does not report it")
    }));
    let none = set.as_deref().map_or(
        ("AllKnown", "NVML reports the memory of every GPU"),
        |message| ("FromSettings", message),
    );
    any("MemoryUnknown", ("Found", list(unknown)), none)
}

fn mode_changing(inventory: &Inventory) -> CurrentCondition {
    let changes = inventory.state.gpus.values().filter_map(|state| {
        let mode = inventory.state.changing_to(&state.surveyed.uuid)?;
        let index = state.surveyed.index;
        Some(match &state.failed_mode_change {
            Some(failed) => format!("GPU {index} cannot change to {mode}: {}", failed.outcome),
            None => format!("GPU {index} changes to {mode} when it is idle"),
        })
    });
    any(
        "ModeChanging",
        ("WaitingForIdle", list(changes)),
        ("AsWanted", "every GPU works in the wanted mode"),
    )
}

fn quarantined(gpus: &[Gpu]) -> CurrentCondition {
    any(
        "Quarantined",
        ("Found", instances(gpus, InstanceState::Quarantined)),
        ("None", "no instance is quarantined"),
    )
}

fn foreign_instances(gpus: &[Gpu]) -> CurrentCondition {
    any(
        "ForeignInstances",
        ("Found", instances(gpus, InstanceState::Foreign)),
        ("None", "all instances were created by Tessera"),
    )
}

fn other_mig_manager(node: Option<&Node>) -> CurrentCondition {
    if node.is_some_and(|node| node.labels().contains_key(keys::MIG_CONFIG)) {
        let message = format!(
            "the node has the label {}: NVIDIA's MIG manager may change instances",
            keys::MIG_CONFIG
        );
        CurrentCondition::new("OtherMigManager", true, "Labelled", message)
    } else {
        let message = "no other MIG manager was found".to_owned();
        CurrentCondition::new("OtherMigManager", false, "None", message)
    }
}

/// A condition that is true with the message of what was `found`, or false with that of `none`.
fn any(
    kind: &'static str,
    found: (&'static str, Option<String>),
    none: (&'static str, &str),
) -> CurrentCondition {
    if let (reason, Some(message)) = found {
        return CurrentCondition::new(kind, true, reason, message);
    }
    let (reason, message) = none;
    CurrentCondition::new(kind, false, reason, message.to_owned())
}

/// The instances in a state, in words.
fn instances(gpus: &[Gpu], state: InstanceState) -> Option<String> {
    let all = gpus
        .iter()
        .flat_map(|gpu| gpu.instances.iter().map(move |instance| (gpu, instance)));
    let found = all.filter(|(_, instance)| instance.state == state);
    list(found.map(|(gpu, instance)| {
        let reason = instance.reason.as_deref().unwrap_or("unknown reason");
        format!(
            "{} at slice {} of GPU {}: {reason}",
            instance.profile, instance.start, gpu.index
        )
    }))
}

/// `None` for nothing.
fn list(items: impl Iterator<Item = String>) -> Option<String> {
    let items: Vec<_> = items.collect();
    (!items.is_empty()).then(|| items.join("; "))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    };

    use domain::{fixtures, mode::NodeMode};

    use super::*;
    use crate::{
        gpus::{
            instance::{Ownership, TrackedInstance},
            state::{Attempt, GpuFault, GpuState, NodeState},
        },
        nvml::data::{FoundGpu, Health, LiveInstance, MigMode, SurveyedGpu},
        publish::gpus::published,
    };

    /// One healthy GPU in MIG mode, changed as `change` says.
    fn inventory(change: impl FnOnce(&mut Inventory, &mut GpuState)) -> Inventory {
        let gpu = SurveyedGpu {
            index: 0,
            uuid: "GPU-1".into(),
            minor: 0,
            numa: None,
            model: fixtures::a100_80gb(),
            mig: Some(MigMode {
                current: true,
                pending: true,
            }),
            health: Health::default(),
            instances: vec![],
        };
        let mut state = NodeState::default();
        state.apply_survey(vec![gpu], &[], &[], 0);
        state.apply_pods(Arc::default(), 0);
        let mut gpu = state.gpus.remove("GPU-1").unwrap().as_ref().clone();
        let mut inventory = Inventory {
            state,
            nvml_failure: None,
            ..Inventory::unsurveyed()
        };
        change(&mut inventory, &mut gpu);
        inventory.state.gpus.insert("GPU-1".into(), Arc::new(gpu));
        inventory
    }

    fn tracked(ownership: Ownership) -> TrackedInstance {
        TrackedInstance {
            live: LiveInstance {
                id: 7,
                profile_id: 19,
                start: 6,
                size: 1,
                compute: vec![],
            },
            generation: Some(1),
            ownership,
            fault: None,
        }
    }

    fn labelled(key: &str) -> Node {
        let labels = serde_json::json!({ "metadata": { "labels": { key: "all-1g.10gb" } } });
        serde_json::from_value(labels).unwrap()
    }

    /// The conditions that report something bad: `Reason: message` by type.
    fn bad(inventory: &Inventory, node: Option<&Node>) -> BTreeMap<&'static str, String> {
        let gpus = published(inventory, 10);
        let conditions = current(inventory, node, Registration::Registered, &gpus);
        let should_be_true = BTreeSet::from(["Ready", REGISTERED]);
        conditions
            .into_iter()
            .filter(|known| known.is_true != should_be_true.contains(known.kind))
            .map(|known| (known.kind, format!("{}: {}", known.reason, known.message)))
            .collect()
    }

    /// Peer lesson: what went wrong ends in a condition that reports it, never in silence.
    #[test]
    fn every_fault_has_its_condition_in_words() {
        assert_eq!(bad(&inventory(|_, _| {}), None), BTreeMap::new());
        let one = |change: &dyn Fn(&mut Inventory, &mut GpuState)| {
            let bad = bad(&inventory(change), None);
            assert_eq!(bad.len(), 1, "{bad:?}");
            bad.into_iter().next().unwrap()
        };
        let stuck = Ownership::Stuck {
            failures: 6,
            retry_at: 0,
            reason: "In use by another client".into(),
        };
        for ((kind, words), wanted, part) in [
            (
                one(&|i, _| i.nvml_failure = Some("GPU 0: GPU is lost".into())),
                "Ready",
                "NvmlFails: GPU 0: GPU is lost",
            ),
            (
                one(&|i, _| i.journal_failure = Some("disk full".into())),
                "Ready",
                "JournalFails: disk full",
            ),
            (
                one(&|_, gpu| {
                    gpu.fault = Some(GpuFault {
                        reason: "XID 79".into(),
                        since: 0,
                    });
                }),
                "GpusUnhealthy",
                "GPU 0: XID 79",
            ),
            (
                one(&|_, gpu| gpu.instances.push(tracked(stuck.clone()))),
                "Quarantined",
                "1g.10gb at slice 6 of GPU 0: In use by another client",
            ),
            (
                one(&|_, gpu| gpu.instances.push(tracked(Ownership::Foreign))),
                "ForeignInstances",
                "not created by Tessera",
            ),
            (
                one(&|inventory, gpu| {
                    inventory.state.wanted_modes.node = Some(NodeMode::HamiCore);
                    gpu.failed_mode_change = Some(Attempt {
                        outcome: "in use by python (process 7)".into(),
                        retry_at: 0,
                    });
                }),
                "ModeChanging",
                "to hami-core: in use by python (process 7)",
            ),
        ] {
            assert!(kind == wanted && words.contains(part), "{kind}: {words}");
        }
    }

    /// Issue 12: a GPU of unknown memory is named, with the setting.
    #[test]
    fn a_gpu_of_unknown_memory_is_named_with_the_setting() {
        let with = |memory| {
            let found = FoundGpu {
                index: 0,
                uuid: None,
                memory,
            };
            memory_unknown(&inventory(|inventory, _| inventory.found = vec![found]))
        };
        let unknown = with(MemorySource::Unknown);
        assert!(unknown.is_true && unknown.message.contains("memory of GPU 0"));
        assert!(unknown.message.contains("set preConfiguredDeviceMemory"));
        let set = with(MemorySource::Settings);
        assert_eq!((set.is_true, set.reason), (false, "FromSettings"));
        assert_eq!(with(MemorySource::Nvml).reason, "AllKnown");
    }

    #[test]
    fn another_mig_manager_is_reported() {
        let bad = bad(&inventory(|_, _| {}), Some(&labelled(keys::MIG_CONFIG)));
        assert_eq!(bad.len(), 1, "{bad:?}");
        let message = &bad["OtherMigManager"];
        assert!(message.contains("NVIDIA's MIG manager may change instances"));
    }

    #[test]
    fn a_call_that_hangs_makes_every_gpu_unhealthy_too() {
        let hanging = inventory(|inventory, _| {
            inventory.nvml_hang = Some("NVML has not answered for 30 s".into());
        });
        let bad = bad(&hanging, None);
        assert_eq!(bad.len(), 2, "{bad:?}");
        assert!(bad["Ready"].starts_with("NvmlHangs"), "{bad:?}");
        assert!(bad.contains_key("GpusUnhealthy"), "{bad:?}");
    }

    /// Issue 12: during an upgrade of the driver the node offers nothing, and says why.
    #[test]
    fn while_the_driver_is_left_alone_nothing_is_offered() {
        let paused = inventory(|inventory, _| {
            inventory.pause = Some("the node has the label x".into());
        });
        let bad = bad(&paused, None);
        for kind in ["Ready", REGISTERED] {
            assert_eq!(bad[kind], "DriverUpgrade: the node has the label x");
        }
        assert!(bad.contains_key("GpusUnhealthy"), "{bad:?}");
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let inventory = inventory(|_, _| {});
        let condition = |registration| registered(&inventory, registration);
        let (first, later) = (
            jiff::Timestamp::UNIX_EPOCH,
            jiff::Timestamp::from_second(60).unwrap(),
        );
        let before = condition(Registration::Missing).since(&[], &first);
        assert_eq!(before.last_transition_time, "1970-01-01T00:00:00Z");
        let before = [before];
        // Another reason is no change of the status.
        let ending = condition(Registration::Ending).since(&before, &later);
        assert_eq!(ending.last_transition_time, "1970-01-01T00:00:00Z");
        let registered = condition(Registration::Registered).since(&before, &later);
        assert_eq!(registered.last_transition_time, "1970-01-01T00:01:00Z");
    }
}
