//! Mistakes in the settings of this node: a label or list entry that names nothing. Pure.

use std::collections::BTreeSet;

use domain::{
    config::{DeviceMode, NodeConfig},
    keys,
    mode::NodeMode,
    status::Condition,
};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::{
    gpus::{event::AgentEvent, inventory::Inventory},
    nvml::data::FoundGpu,
    publish::conditions::CurrentCondition,
};

/// Type of the condition.
const SETTINGS_VALID: &str = "SettingsValid";

/// Condition `SettingsValid`: false with all mistakes.
pub(crate) fn condition(
    inventory: &Inventory,
    node: Option<&Node>,
    settings: &NodeConfig,
) -> CurrentCondition {
    let mistakes = mistakes(&inventory.found, node, settings);
    if mistakes.is_empty() {
        let message = "every setting of this node names a mode and GPUs that exist".to_owned();
        return CurrentCondition::new(SETTINGS_VALID, true, "Valid", message);
    }
    CurrentCondition::new(SETTINGS_VALID, false, "Mistakes", mistakes.join("; "))
}

/// The Event about mistakes that were not reported `before`.
pub(crate) fn event(before: &[Condition], now: &[Condition]) -> Option<AgentEvent> {
    let wrong = |conditions: &[Condition]| {
        let mut wrong = conditions
            .iter()
            .filter(|known| known.kind == SETTINGS_VALID && known.status == "False");
        wrong.next().map(|known| known.message.clone())
    };
    let message = wrong(now).filter(|message| wrong(before).as_ref() != Some(message))?;
    Some(AgentEvent::warning(None, "SettingsInvalid", message))
}

/// All mistakes, in words. `found` is empty before the first survey: then nothing is said about GPUs.
fn mistakes(found: &[FoundGpu], node: Option<&Node>, settings: &NodeConfig) -> Vec<String> {
    let mut mistakes = Vec::new();
    mistakes.extend(node.and_then(label_mistake));
    mistakes.extend(node.and_then(annotation_mistake));
    if found.is_empty() {
        return mistakes;
    }
    let filter = &settings.filterdevices;
    let indices = filter.index.iter().map(|index| (Some(*index), None));
    let uuids = filter.uuid.iter().map(|uuid| (None, Some(uuid.as_str())));
    let excluded = indices.chain(uuids).map(|entry| ("filterdevices", entry));
    let modes = settings.devicemodes.iter().map(|device| {
        let DeviceMode { uuid, index, .. } = device;
        ("devicemodes", (*index, uuid.as_deref()))
    });
    let entries = excluded.chain(modes);
    mistakes.extend(
        entries.filter_map(|(list, (index, uuid))| entry_mistake(found, list, index, uuid)),
    );
    mistakes
}

fn label_mistake(node: &Node) -> Option<String> {
    let label = node.labels().get(keys::VGPU_MODE)?;
    let error = label.parse::<NodeMode>().err()?;
    Some(format!("node label {}: {error}", keys::VGPU_MODE))
}

/// The mode of a pod is an annotation, that of a node a label: easily confused.
fn annotation_mistake(node: &Node) -> Option<String> {
    let value = node.annotations().get(keys::VGPU_MODE)?;
    let key = keys::VGPU_MODE;
    Some(format!(
        "node annotation {key} has no effect; write the label: kubectl label node {} {key}={value}",
        node.name_any()
    ))
}

fn entry_mistake(
    found: &[FoundGpu],
    list: &str,
    index: Option<u32>,
    uuid: Option<&str>,
) -> Option<String> {
    if index.is_none() && uuid.is_none() {
        return Some(format!("{list}: an entry has neither uuid nor index"));
    }
    // The UUID of a GPU that is excluded by its index is not known: it may be the one that is meant.
    let matches = |gpu: &FoundGpu| {
        index.is_none_or(|index| index == gpu.index)
            && uuid.is_none_or(|uuid| gpu.uuid.as_deref().is_none_or(|known| known == uuid))
    };
    if found.iter().any(matches) {
        return None;
    }
    let named = [
        index.map(|index| format!("index {index}")),
        uuid.map(|uuid| format!("UUID {uuid:?}")),
    ];
    let named: Vec<String> = named.into_iter().flatten().collect();
    let known: BTreeSet<String> = found
        .iter()
        .map(|gpu| match &gpu.uuid {
            Some(uuid) => format!("{} ({uuid})", gpu.index),
            None => gpu.index.to_string(),
        })
        .collect();
    let known: Vec<String> = known.into_iter().collect();
    Some(format!(
        "{list}: no GPU of this node has {}; its GPUs are {}",
        named.join(" and "),
        known.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use domain::config::FilterDevices;

    use super::*;
    use crate::nvml::data::MemorySource;

    fn node(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Node {
        let map = |pairs: &[(&str, &str)]| -> serde_json::Value {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), serde_json::Value::from(*value)))
                .collect()
        };
        let metadata = serde_json::json!({ "name": "n", "labels": map(labels),
            "annotations": map(annotations) });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).unwrap()
    }

    fn found(uuids: &[Option<&str>]) -> Vec<FoundGpu> {
        (0..)
            .zip(uuids)
            .map(|(index, uuid)| FoundGpu {
                index,
                uuid: uuid.map(str::to_owned),
                memory: MemorySource::Nvml,
            })
            .collect()
    }

    fn mode(index: Option<u32>, uuid: Option<&str>) -> DeviceMode {
        DeviceMode {
            uuid: uuid.map(str::to_owned),
            index,
            operatingmode: NodeMode::Mig,
        }
    }

    /// Issue 12: what is typed wrong is a condition with all mistakes, and an Event when they are new.
    #[test]
    fn every_mistake_is_in_the_condition_in_words() {
        let settings = NodeConfig {
            filterdevices: FilterDevices {
                uuid: vec!["GPU-0".into(), "GPU-x".into()],
                index: vec![1, 7],
            },
            devicemodes: vec![
                mode(Some(0), None),
                mode(Some(1), Some("GPU-0")),
                mode(None, None),
            ],
            ..NodeConfig::default()
        };
        let node = node(&[(keys::VGPU_MODE, "MIG")], &[(keys::VGPU_MODE, "mig")]);
        let gpus = found(&[Some("GPU-0"), Some("GPU-1")]);
        let mistakes = mistakes(&gpus, Some(&node), &settings);
        let parts = [
            "node label nvidia.com/vgpu-mode: \"MIG\" is not a vGPU mode",
            "kubectl label node n nvidia.com/vgpu-mode=mig",
            "filterdevices: no GPU of this node has index 7; its GPUs are 0 (GPU-0), 1 (GPU-1)",
            "filterdevices: no GPU of this node has UUID \"GPU-x\"",
            "devicemodes: no GPU of this node has index 1 and UUID \"GPU-0\"",
            "devicemodes: an entry has neither uuid nor index",
        ];
        assert_eq!(mistakes.len(), parts.len(), "{mistakes:#?}");
        for (mistake, part) in mistakes.iter().zip(parts) {
            assert!(mistake.contains(part), "{mistake}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_gpu_that_is_not_known_or_may_be_meant() {
        let settings = NodeConfig {
            filterdevices: FilterDevices {
                uuid: vec!["GPU-1".into()],
                index: vec![1],
            },
            ..NodeConfig::default()
        };
        let good = node(&[(keys::VGPU_MODE, "auto")], &[]);
        for gpus in [found(&[]), found(&[Some("GPU-0"), None])] {
            assert_eq!(
                mistakes(&gpus, Some(&good), &settings),
                Vec::<String>::new()
            );
        }
    }

    #[test]
    fn an_event_comes_with_each_new_mistake() {
        let published = |label: &str| {
            let node = node(&[(keys::VGPU_MODE, label)], &[]);
            let inventory = Inventory::unsurveyed();
            let current = condition(&inventory, Some(&node), &NodeConfig::default());
            vec![current.since(&[], &jiff::Timestamp::UNIX_EPOCH)]
        };
        let (good, bad, other) = (published("mig"), published("migg"), published("gim"));
        assert_eq!(event(&[], &good), None);
        let first = event(&good, &bad).unwrap();
        assert!(first.is_warning && first.message.contains("migg"));
        assert_eq!(event(&bad, &bad), None);
        assert!(event(&bad, &other).unwrap().message.contains("gim"));
        assert_eq!(event(&other, &good), None);
    }
}
