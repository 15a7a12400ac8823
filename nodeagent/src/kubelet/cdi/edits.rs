//! The edits of one container: device nodes, environment and mounts, in CDI's format.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::kubelet::cdi::{device_node::DeviceNode, driver::DriverProc};

/// Variable of the container that names the UUIDs of its devices.
const DEVICES_VARIABLE: &str = "TESSERA_DEVICES";

/// What a container gets beside the driver's common edits.
#[derive(Debug)]
pub(crate) struct Edits {
    pub(crate) nodes: Vec<DeviceNode>,
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Value>,
}

impl Edits {
    /// The edits that every container with these devices gets.
    pub(crate) fn new<'a>(driver: &DriverProc, uuids: impl Iterator<Item = &'a str>) -> Self {
        let uuids: Vec<_> = uuids.collect();
        let mut nodes = vec![DeviceNode::control()];
        // Unified memory: a module of its own, which may not be loaded.
        if let Ok(uvm) = driver.major_number("nvidia-uvm") {
            nodes.push(DeviceNode::new("/dev/nvidia-uvm", uvm, 0));
            nodes.push(DeviceNode::new("/dev/nvidia-uvm-tools", uvm, 1));
        }
        Self {
            nodes,
            env: vec![
                // The spec injects the devices: NVIDIA's runtime must not add any because of this variable.
                "NVIDIA_VISIBLE_DEVICES=void".to_owned(),
                format!("{DEVICES_VARIABLE}={}", uuids.join(",")),
            ],
            mounts: vec![],
        }
    }

    /// Adds a node, unless it is there: two instances of one GPU need the same.
    pub(crate) fn add_node(&mut self, node: DeviceNode) {
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
    }

    /// Appends the edits to those of a spec; empty lists go, because CDI's schema does not allow them.
    pub(crate) fn append_to(self, mut edits: Map<String, Value>) -> Map<String, Value> {
        let nodes = self.nodes.into_iter().map(|node| json!(node)).collect();
        let env = self.env.into_iter().map(Value::from).collect();
        let lists: [(&str, Vec<Value>); 3] = [
            ("deviceNodes", nodes),
            ("env", env),
            ("mounts", self.mounts),
        ];
        for (key, values) in lists {
            let entry = edits.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = entry.as_array_mut() {
                list.extend(values);
            }
        }
        edits.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
        edits
    }
}

/// The UUIDs of the devices in the edits of a written spec.
pub(crate) fn device_uuids(edits: &Value) -> Vec<String> {
    let env = edits["env"].as_array().into_iter().flatten();
    let uuids = env
        .filter_map(Value::as_str)
        .find_map(|line| line.strip_prefix(DEVICES_VARIABLE)?.strip_prefix('='));
    let uuids = uuids.unwrap_or_default();
    uuids.split(',').map(str::to_owned).collect()
}

/// A file system in memory of a bounded size that every user may write; it goes with the container.
pub(crate) fn memory_mount(container: &str, mib: u32) -> Value {
    let size = format!("size={mib}m");
    json!({ "hostPath": "tmpfs", "containerPath": container, "type": "tmpfs",
        "options": ["rw", "nosuid", "nodev", "noexec", size, "nr_inodes=1k", "mode=1777"] })
}

/// A bind mount, `ro` or `rw`.
pub(crate) fn mount(host: &Path, container: &str, mode: &str) -> Value {
    json!({ "hostPath": host, "containerPath": container, "options": [mode, "nosuid", "nodev", "bind"] })
}
