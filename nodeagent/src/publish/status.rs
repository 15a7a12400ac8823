//! The node's `GpuNode` object: written whenever what it says has changed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use daemon::{
    gpu_node::{GpuNode, GpuNodeSpec},
    ready::Latch,
};
use domain::{
    gpu::{Gpu, Instance, InstanceState},
    keys,
    status::{Condition, GpuNodeStatus, REGISTERED},
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::sync::watch;

use crate::{
    gpus::instance::Ownership, gpus::inventory::Inventory, kubelet::device_plugin::Registration,
};

/// The cards as they are published.
pub fn cards(inventory: &Inventory, shares: u32) -> Vec<Gpu> {
    let instances = &inventory.state;
    let mut gpus: Vec<Gpu> = instances
        .gpus
        .values()
        .map(|state| Gpu {
            index: state.surveyed.index,
            uuid: state.surveyed.uuid.clone(),
            model: state.surveyed.model.name.clone(),
            memory_mib: state.surveyed.model.memory_mib,
            mode: state.mode(),
            changing_to: instances.changing_to(&state.surveyed.uuid),
            auto_mode: instances.has_automatic_mode(state),
            unhealthy: inventory.unhealthy_reason(&state.surveyed.uuid),
            max_shares: shares,
            numa: state.surveyed.numa,
            instances: state
                .instances
                .iter()
                .map(|held| {
                    let offer = state
                        .surveyed
                        .model
                        .offers
                        .iter()
                        .find(|offer| offer.profile_id == held.live.profile_id);
                    let (pod_uid, pod, container, reason) = match &held.ownership {
                        Ownership::Claimed(had) => (
                            Some(had.uid.clone()),
                            Some(had.pod.clone()),
                            Some(had.container.clone()),
                            None,
                        ),
                        Ownership::Lingering { last, .. } => (
                            None,
                            last.as_ref().map(|last| last.pod.clone()),
                            None,
                            Some("no pod claims it; its processes are looked up".to_owned()),
                        ),
                        Ownership::Stuck { reason, .. } => (None, None, None, Some(reason.clone())),
                        Ownership::Foreign => {
                            (None, None, None, Some("not made by Tessera".to_owned()))
                        }
                        Ownership::Idle { .. } => (None, None, None, None),
                    };
                    let reason = held.fault.clone().or(reason);
                    Instance {
                        profile: offer.map_or_else(
                            || format!("profile-{}", held.live.profile_id),
                            |offer| offer.profile.clone(),
                        ),
                        start: held.live.start,
                        size: held.live.size,
                        gpu_instance_id: held.live.id,
                        uuid: held
                            .live
                            .compute
                            .first()
                            .map(|compute| compute.uuid.clone()),
                        memory_mib: offer.map_or(0, |offer| offer.memory_mib),
                        state: held.state(),
                        pod,
                        pod_uid,
                        container,
                        reason,
                    }
                })
                .collect(),
        })
        .collect();
    gpus.sort_by_key(|gpu| gpu.index);
    gpus
}

/// The whole status; conditions keep their time of change from `before`.
fn status(
    inventory: &Inventory,
    node: Option<&Node>,
    shares: u32,
    registration: Registration,
    before: &[Condition],
) -> GpuNodeStatus {
    let instances = &inventory.state;
    let gpus = cards(inventory, shares);
    let mut models = BTreeMap::new();
    for state in instances.gpus.values() {
        models
            .entry(state.surveyed.model.name.clone())
            .or_insert_with(|| state.surveyed.model.clone());
    }
    let conditions = conditions(inventory, node, registration, &gpus)
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let since = before
                .iter()
                .find(|known| known.kind == kind && known.status == status)
                .map_or_else(
                    || {
                        jiff::Timestamp::now()
                            .strftime("%Y-%m-%dT%H:%M:%SZ")
                            .to_string()
                    },
                    |known| known.last_transition_time.clone(),
                );
            Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                last_transition_time: since,
            }
        })
        .collect();
    GpuNodeStatus {
        mode: instances.wanted_modes.node,
        models: models.into_values().collect(),
        gpus,
        conditions,
        ..GpuNodeStatus::default()
    }
    .with_summary()
}

type Said = (&'static str, bool, &'static str, String);

fn conditions(
    inventory: &Inventory,
    node: Option<&Node>,
    registration: Registration,
    gpus: &[Gpu],
) -> Vec<Said> {
    let ready = match (
        &inventory.nvml_hang,
        &inventory.nvml_failure,
        &inventory.journal_failure,
    ) {
        (Some(words), ..) => ("Ready", false, "NvmlHangs", words.clone()),
        (None, Some(words), _) => ("Ready", false, "NvmlFails", words.clone()),
        (None, None, Some(words)) => ("Ready", false, "JournalFails", words.clone()),
        (None, None, None) => {
            let words = "NVML answers for every card".to_owned();
            ("Ready", true, "NvmlAnswers", words)
        }
    };
    let mut said: Vec<Said> = vec![ready, registered(registration)];
    let ill = gpus.iter().filter_map(|gpu| {
        let words = gpu.unhealthy.as_ref()?;
        let state = inventory.state.gpus.get(&gpu.uuid)?;
        let reset = state.last_reset.as_ref();
        let reset = reset.map_or_else(String::new, |reset| format!(" (reset: {})", reset.outcome));
        Some(format!("GPU {}: {words}{reset}", gpu.index))
    });
    let ill: Vec<_> = ill.collect();
    said.push(if ill.is_empty() {
        let words = "every card can be used".to_owned();
        ("GpusUnhealthy", false, "AllHealthy", words)
    } else {
        ("GpusUnhealthy", true, "Found", ill.join("; "))
    });
    let changing: Vec<_> = inventory
        .state
        .gpus
        .values()
        .filter_map(|state| {
            let to = inventory.state.changing_to(&state.surveyed.uuid)?;
            Some(match &state.failed_mode_change {
                Some(failed) => format!("GPU {} to {to}: {}", state.surveyed.index, failed.outcome),
                None => format!("GPU {} to {to} when it is idle", state.surveyed.index),
            })
        })
        .collect();
    said.push(if changing.is_empty() {
        (
            "ModeChanging",
            false,
            "AsWanted",
            "every card works in the mode that is wanted".to_owned(),
        )
    } else {
        ("ModeChanging", true, "WaitingForIdle", changing.join("; "))
    });
    let held = |state: InstanceState| {
        gpus.iter()
            .flat_map(|gpu| gpu.instances.iter().map(move |instance| (gpu, instance)))
            .filter(|(_, instance)| instance.state == state)
            .map(|(gpu, i)| {
                let reason = i.reason.as_deref().unwrap_or("no reason known");
                format!(
                    "{} at {} of GPU {}: {reason}",
                    i.profile, i.start, gpu.index
                )
            })
            .collect::<Vec<_>>()
            .join("; ")
    };
    for (kind, state, none) in [
        (
            "Quarantined",
            InstanceState::Quarantined,
            "no instance is stuck",
        ),
        (
            "ForeignInstances",
            InstanceState::Foreign,
            "all instances are Tessera's",
        ),
    ] {
        let words = held(state);
        said.push(if words.is_empty() {
            (kind, false, "None", none.to_owned())
        } else {
            (kind, true, "Found", words)
        });
    }
    let other = node.is_some_and(|node| node.labels().contains_key(keys::MIG_CONFIG));
    said.push(if other {
        let message = format!(
            "the node has the label {}: NVIDIA's MIG manager may change instances",
            keys::MIG_CONFIG
        );
        ("OtherMigManager", true, "Labelled", message)
    } else {
        (
            "OtherMigManager",
            false,
            "None",
            "no other MIG manager is known".to_owned(),
        )
    });
    said
}

fn registered(registration: Registration) -> Said {
    let (is_registered, reason, words) = match registration {
        Registration::Done => (true, "Registered", "kubelet knows the devices"),
        Registration::Missing => (
            false,
            "NotRegistered",
            "kubelet does not know the devices yet; no pods are sent here",
        ),
        Registration::Ends => (
            false,
            "AgentEnds",
            "the agent is about to end; no pods are sent here until it is back",
        ),
    };
    (REGISTERED, is_registered, reason, words.to_owned())
}

/// What is published, and for whom.
pub struct Publisher {
    /// The API server.
    pub client: Client,
    /// Name of the node and of its object.
    pub node_name: String,
    /// Device ids a card.
    pub shares: u32,
    /// The cards.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The node.
    pub node: watch::Receiver<Option<Node>>,
    /// Whether kubelet knows the devices.
    pub registration: watch::Receiver<Registration>,
    /// Shows what is published.
    pub show: watch::Sender<GpuNodeStatus>,
    /// Released when what is published lets pods come.
    pub ready: Latch,
}

impl Publisher {
    /// Publishes whatever changes, for ever.
    pub async fn run(self) {
        let Self {
            client,
            node_name,
            shares,
            mut inventory,
            mut node,
            mut registration,
            show,
            ready,
        } = self;
        let api: Api<GpuNode> = Api::all(client);
        let mut published: Option<GpuNodeStatus> = None;
        let mut ready = Some(ready);
        loop {
            let state = inventory.borrow_and_update().clone();
            let known_node = node.borrow_and_update().clone();
            let registered = *registration.borrow_and_update();
            let before = published
                .as_ref()
                .map_or(&[][..], |status| &status.conditions);
            let fresh = status(&state, known_node.as_ref(), shares, registered, before);
            if published.as_ref() != Some(&fresh) {
                match write(&api, &node_name, known_node.as_ref(), &fresh).await {
                    Ok(()) => {
                        show.send_replace(fresh.clone());
                        if let Some(ready) = ready.take_if(|_| fresh.is_registered()) {
                            ready.release();
                        }
                        published = Some(fresh);
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "Cannot publish the inventory, trying again"
                        );
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                }
            }
            // Changes come in bursts while instances are made: one write for what comes together.
            let changed = async {
                tokio::select! {
                    _ = inventory.changed() => {}
                    _ = node.changed() => {}
                    _ = registration.changed() => {}
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            changed.await;
        }
    }
}

async fn write(
    api: &Api<GpuNode>,
    name: &str,
    node: Option<&Node>,
    status: &GpuNodeStatus,
) -> kube::Result<()> {
    // A merge patch leaves what is not named: absent values of the status must be nulled by replacing it whole.
    let patch = serde_json::json!([{ "op": "add", "path": "/status", "value": status }]);
    let patch: Patch<()> =
        Patch::Json(serde_json::from_value(patch).map_err(kube::Error::SerdeError)?);
    match api
        .patch_status(name, &PatchParams::default(), &patch)
        .await
    {
        Err(kube::Error::Api(refused)) if refused.is_not_found() => {
            let owner = node.and_then(|node| node.controller_owner_ref(&()));
            let owner: Option<OwnerReference> = owner.map(|owner| OwnerReference {
                controller: None,
                ..owner
            });
            let object = GpuNode {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    owner_references: owner.map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: GpuNodeSpec {},
                status: None,
            };
            api.create(&PostParams::default(), &object).await?;
            api.patch_status(name, &PatchParams::default(), &patch)
                .await
                .map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpus::instance::TrackedInstance,
        gpus::state::{Attempt, GpuFault, GpuState, NodeState},
        nvml::data::{Health, LiveInstance, MigMode, SurveyedGpu},
    };
    use domain::{fixtures, mode::NodeMode};

    fn inventory() -> Inventory {
        let card = SurveyedGpu {
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
        let mut instances = NodeState::default();
        instances.apply_survey(vec![card], &[], &[], 0);
        instances.apply_pods(Arc::default(), 0);
        Inventory {
            state: instances,
            nvml_failure: None,
            nvml_hang: None,
            journal_failure: None,
        }
    }

    fn held(ownership: Ownership) -> TrackedInstance {
        let live = LiveInstance {
            id: 7,
            profile_id: 19,
            start: 6,
            size: 1,
            compute: vec![],
        };
        TrackedInstance {
            live,
            generation: Some(1),
            ownership,
            fault: None,
        }
    }

    fn label(key: &str) -> Node {
        let labels = serde_json::json!({ "metadata": { "labels": { key: "all-1g.10gb" } } });
        serde_json::from_value(labels).unwrap()
    }

    /// Peer lesson: what went wrong ends in a condition that says so, never in silence.
    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn every_trouble_has_its_condition_in_words() {
        let said = |inventory: &Inventory, node: Option<&Node>| -> BTreeMap<String, String> {
            let status = status(inventory, node, 10, Registration::Done, &[]);
            let good = |kind: &str| ["Ready", REGISTERED].contains(&kind);
            let bad = |c: &Condition| good(&c.kind) == (c.status == "False");
            let bad = status.conditions.into_iter().filter(bad);
            bad.map(|c| (c.kind, format!("{}: {}", c.reason, c.message)))
                .collect()
        };
        let well = inventory();
        assert_eq!(said(&well, None), BTreeMap::new());
        let one = |change: &dyn Fn(&mut Inventory, &mut GpuState), node: Option<&Node>| {
            let mut ill = inventory();
            let mut state = ill.state.gpus.remove("GPU-1").unwrap();
            change(&mut ill, Arc::make_mut(&mut state));
            ill.state.gpus.insert("GPU-1".into(), state);
            let said = said(&ill, node);
            assert_eq!(said.len(), 1, "{said:?}");
            said.into_iter().next().unwrap()
        };
        let stuck = Ownership::Stuck {
            failures: 6,
            retry_at: 0,
            reason: "In use by another client".into(),
        };
        for ((kind, words), wanted, part) in [
            (
                one(
                    &|i, _| i.nvml_failure = Some("GPU 0: GPU is lost".into()),
                    None,
                ),
                "Ready",
                "NvmlFails: GPU 0: GPU is lost",
            ),
            (
                one(&|i, _| i.journal_failure = Some("disk full".into()), None),
                "Ready",
                "JournalFails: disk full",
            ),
            (
                one(
                    &|_, card| {
                        card.fault = Some(GpuFault {
                            reason: "XID 79".into(),
                            since: 0,
                        });
                    },
                    None,
                ),
                "GpusUnhealthy",
                "GPU 0: XID 79",
            ),
            (
                one(&|_, card| card.instances.push(held(stuck.clone())), None),
                "Quarantined",
                "1g.10gb at 6 of GPU 0: In use by another client",
            ),
            (
                one(
                    &|_, card| card.instances.push(held(Ownership::Foreign)),
                    None,
                ),
                "ForeignInstances",
                "not made by Tessera",
            ),
            (
                one(
                    &|inventory, card| {
                        inventory.state.wanted_modes.node = Some(NodeMode::HamiCore);
                        card.failed_mode_change = Some(Attempt {
                            outcome: "in use by python (process 7)".into(),
                            retry_at: 0,
                        });
                    },
                    None,
                ),
                "ModeChanging",
                "to hami-core: in use by python (process 7)",
            ),
            (
                one(&|_, _| {}, Some(&label(keys::MIG_CONFIG))),
                "OtherMigManager",
                "NVIDIA's MIG manager may change instances",
            ),
        ] {
            assert!(kind == wanted && words.contains(part), "{kind}: {words}");
        }
        // Pods that would come too early or too late are not sent.
        for (registration, reason) in [
            (Registration::Missing, "NotRegistered"),
            (Registration::Ends, "AgentEnds"),
            (Registration::Done, "Registered"),
        ] {
            let status = status(&well, None, 10, registration, &[]);
            assert_eq!(status.is_registered(), registration == Registration::Done);
            let mut conditions = status.conditions.iter();
            assert!(conditions.any(|c| c.kind == REGISTERED && c.reason == reason));
        }
        // A call that hangs makes every card ill, too.
        let mut hangs = inventory();
        hangs.nvml_hang = Some("NVML has not answered for 30 s".into());
        let said = said(&hangs, None);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said["Ready"].starts_with("NvmlHangs"), "{said:?}");
    }
}
