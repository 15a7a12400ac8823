//! kubelet's device manager: which container has which device ids. Pure, but for its file.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use domain::demand::ContainerKind;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

/// A device plugin that has registered.
#[derive(Clone, Debug, Default)]
pub(super) struct Plugin {
    /// Name of its socket.
    pub(super) endpoint: String,
    /// Whether it wants `PreStartContainer`.
    pub(super) pre_start: bool,
    /// Its device ids; `true`: healthy.
    pub(super) ids: BTreeMap<String, bool>,
    /// Which registration of this resource it is.
    pub(super) registration: u64,
}

/// The device ids of a resource that a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    pub(super) uid: String,
    /// `namespace`, `name`; unknown for what was read from the file.
    pub(super) pod: Option<(String, String)>,
    pub(super) container: String,
    pub(super) kind: Option<ContainerKind>,
    pub(super) resource: String,
    pub(super) ids: BTreeSet<String>,
    /// The plugin's answer to `Allocate`, as on the wire.
    pub(super) response: Vec<u8>,
}

/// What a container asks for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) container: String,
    pub(super) kind: ContainerKind,
    pub(super) counts: BTreeMap<String, usize>,
}

/// Why a pod does not get its device ids, in kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AllocationError {
    #[error(
        "Allocate failed due to requested number of devices unavailable for {resource}. \
         Requested: {requested}, Available: {available}, which is unexpected"
    )]
    Unavailable {
        resource: String,
        requested: usize,
        available: usize,
    },
    #[error("Allocate failed due to cannot allocate unregistered device {0}, which is unexpected")]
    NotRegistered(String),
    #[error(
        "Allocate failed due to no healthy devices present; \
         cannot allocate unhealthy devices {0}, which is unexpected"
    )]
    NoHealthyDevice(String),
    #[error(
        "Allocate failed due to previously allocated devices are no longer healthy; \
         cannot allocate unhealthy devices {0}, which is unexpected"
    )]
    Unhealthy(String),
}

/// The device manager of a node.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By resource.
    pub(super) plugins: BTreeMap<String, Plugin>,
    pub(super) allocations: Vec<Allocation>,
}

impl Devices {
    /// Gives a pod its ids, containers in the order in which they start.
    ///
    /// As kubelet's `devicesToReuse`: the later containers get the ids of an ordinary init container first.
    pub(super) fn allocate(
        &mut self,
        uid: &str,
        pod: (&str, &str),
        requests: &[Request],
    ) -> Result<Vec<Allocation>, AllocationError> {
        let mut given: Vec<Allocation> = Vec::new();
        let mut reusable: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for request in requests {
            for (resource, count) in &request.counts {
                // Not a resource of a device plugin.
                let Some(plugin) = self.plugins.get(resource) else {
                    continue;
                };
                let reuse = reusable.entry(resource).or_default();
                let taken = self.allocations.iter().chain(&given);
                let ids = choose(uid, resource, plugin, reuse, taken, *count);
                if ids.len() < *count {
                    return Err(AllocationError::Unavailable {
                        resource: resource.clone(),
                        requested: *count,
                        available: ids.len(),
                    });
                }
                if request.kind == ContainerKind::Init {
                    reuse.extend(ids.iter().cloned());
                } else {
                    reuse.retain(|id| !ids.contains(id));
                }
                given.push(Allocation {
                    uid: uid.to_owned(),
                    pod: Some((pod.0.to_owned(), pod.1.to_owned())),
                    container: request.container.clone(),
                    kind: Some(request.kind),
                    resource: resource.clone(),
                    ids,
                    response: vec![],
                });
            }
        }
        self.allocations.extend(given.iter().cloned());
        Ok(given)
    }

    /// Frees a pod's ids.
    pub(super) fn release(&mut self, uid: &str) {
        self.allocations.retain(|allocation| allocation.uid != uid);
    }

    /// The allocations of a container.
    pub(super) fn allocations_of(&self, uid: &str, container: &str) -> Vec<Allocation> {
        self.allocations
            .iter()
            .filter(|allocation| allocation.uid == uid && allocation.container == container)
            .cloned()
            .collect()
    }

    /// `kubelet_internal_checkpoint`, in the form of kubelet's `devicemanager/checkpoint`.
    ///
    /// Its checksum is a hash of Go's memory and is left 0: nobody but kubelet reads it.
    pub(super) fn checkpoint(&self) -> Vec<u8> {
        let entries = self.allocations.iter().map(|allocation| Entry {
            pod_uid: allocation.uid.clone(),
            container_name: allocation.container.clone(),
            resource_name: allocation.resource.clone(),
            device_ids: [("-1".to_owned(), allocation.ids.iter().cloned().collect())].into(),
            alloc_resp: ByteString(allocation.response.clone()),
        });
        let file = File {
            data: Data {
                pod_device_entries: entries.collect(),
                registered_devices: self
                    .plugins
                    .iter()
                    .map(|(name, plugin)| (name.clone(), plugin.ids.keys().cloned().collect()))
                    .collect(),
            },
            checksum: 0,
        };
        serde_json::to_vec(&file).unwrap_or_default()
    }

    /// Checks whether a container that has its ids already may be started again, as kubelet's `devicesToAllocate` does.
    pub(super) fn check_allocated(
        &self,
        uid: &str,
        container: &str,
    ) -> Result<(), AllocationError> {
        for Allocation { resource, ids, .. } in self.allocations_of(uid, container) {
            let Some(plugin) = self.plugins.get(&resource) else {
                return Err(AllocationError::NotRegistered(resource));
            };
            if !plugin.ids.values().any(|healthy| *healthy) {
                return Err(AllocationError::NoHealthyDevice(resource));
            }
            if !ids.iter().all(|id| plugin.ids.get(id) == Some(&true)) {
                return Err(AllocationError::Unhealthy(resource));
            }
        }
        Ok(())
    }

    /// Takes over the checkpoint, as kubelet does when it starts: no device is healthy before its plugin is back.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> serde_json::Result<()> {
        let file: File = serde_json::from_slice(bytes)?;
        let known = file.data.registered_devices.into_iter();
        self.plugins = known
            .map(|(resource, ids)| {
                let plugin = Plugin {
                    ids: ids.into_iter().map(|id| (id, false)).collect(),
                    ..Plugin::default()
                };
                (resource, plugin)
            })
            .collect();
        self.allocations = file
            .data
            .pod_device_entries
            .into_iter()
            .map(|entry| Allocation {
                uid: entry.pod_uid,
                pod: None,
                container: entry.container_name,
                kind: None,
                resource: entry.resource_name,
                ids: entry.device_ids.into_values().flatten().collect(),
                response: entry.alloc_resp.0,
            })
            .collect();
        Ok(())
    }
}

/// So many ids for a pod: those to be reused first, then free ones.
fn choose<'a>(
    uid: &str,
    resource: &str,
    plugin: &Plugin,
    reusable: &BTreeSet<String>,
    allocations: impl Iterator<Item = &'a Allocation>,
    count: usize,
) -> BTreeSet<String> {
    let taken: HashSet<&String> = allocations
        .filter(|allocation| allocation.resource == resource)
        .flat_map(|allocation| &allocation.ids)
        .collect();
    let healthy = plugin.ids.iter().filter(|(_, healthy)| **healthy);
    let mut free: Vec<&String> = healthy.map(|(id, _)| id).collect();
    free.retain(|id| !taken.contains(id));
    // kubelet takes them from a Go map, so in no order.
    free.sort_by_key(|id| scrambled(uid, id));
    let mut reused: Vec<&String> = reusable.iter().collect();
    reused.sort_by_key(|id| scrambled(uid, id));
    reused
        .into_iter()
        .chain(free)
        .take(count)
        .cloned()
        .collect()
}

fn scrambled(uid: &str, id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (uid, id).hash(&mut hasher);
    hasher.finish()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Vec<Entry>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
    alloc_resp: ByteString,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "nvidia.com/gpu";

    fn devices(count: usize) -> Devices {
        let plugin = Plugin {
            ids: (0..count)
                .map(|number| (format!("d{number}"), true))
                .collect(),
            ..Plugin::default()
        };
        Devices {
            plugins: [(GPU.to_owned(), plugin)].into(),
            allocations: vec![],
        }
    }

    fn request(container: &str, kind: ContainerKind, count: usize) -> Request {
        Request {
            container: container.to_owned(),
            kind,
            counts: [(GPU.to_owned(), count), ("cpu".to_owned(), 1)].into(),
        }
    }

    #[test]
    fn an_init_containers_ids_are_reused_and_a_sidecars_are_not() {
        let mut devices = devices(4);
        let given = devices
            .allocate(
                "u",
                ("n", "p"),
                &[
                    request("i", ContainerKind::Init, 2),
                    request("s", ContainerKind::Sidecar, 1),
                    request("a", ContainerKind::App, 1),
                    request("b", ContainerKind::App, 2),
                ],
            )
            .unwrap();
        let [init, sidecar, a, b] = [0, 1, 2, 3].map(|at| given[at].ids.clone());
        assert!(sidecar.is_subset(&init) && a.is_subset(&init));
        assert!(sidecar.is_disjoint(&a) && a.is_disjoint(&b) && sidecar.is_disjoint(&b));
        assert!(b.is_disjoint(&init), "all of them are in use again");
        assert!(
            devices
                .allocate("v", ("n", "q"), &[request("c", ContainerKind::App, 1)])
                .is_err()
        );
        devices.release("u");
        assert!(
            devices
                .allocate("v", ("n", "q"), &[request("c", ContainerKind::App, 4)])
                .is_ok()
        );
    }

    #[test]
    fn only_healthy_ids_are_given() {
        let mut devices = devices(2);
        devices
            .plugins
            .get_mut(GPU)
            .unwrap()
            .ids
            .insert("d0".into(), false);
        let given = devices
            .allocate("u", ("n", "p"), &[request("c", ContainerKind::App, 1)])
            .unwrap();
        assert_eq!(given[0].ids, ["d1".to_owned()].into());
    }

    #[test]
    fn the_file_has_kubelets_form_and_is_read_again() {
        let mut before = devices(2);
        before
            .allocate("u", ("n", "p"), &[request("c", ContainerKind::App, 1)])
            .unwrap();
        before.allocations[0].response = b"\x12".to_vec();
        let json: serde_json::Value = serde_json::from_slice(&before.checkpoint()).unwrap();
        let entry = &json["Data"]["PodDeviceEntries"][0];
        assert_eq!(
            (
                &entry["PodUID"],
                &entry["ContainerName"],
                &entry["AllocResp"]
            ),
            (&"u".into(), &"c".into(), &"Eg==".into())
        );
        assert_eq!(
            json["Data"]["RegisteredDevices"][GPU]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let mut after = Devices::default();
        after.restore(&before.checkpoint()).unwrap();
        assert_eq!(after.allocations[0].ids, before.allocations[0].ids);
        assert_eq!(after.allocations[0].response, b"\x12");
    }

    #[test]
    fn after_a_restart_nothing_is_given_until_the_plugin_is_back() {
        let mut before = devices(2);
        before
            .allocate("u", ("n", "p"), &[request("c", ContainerKind::App, 1)])
            .unwrap();
        let mut after = Devices::default();
        after.restore(&before.checkpoint()).unwrap();
        let other = [request("c", ContainerKind::App, 1)];
        let error = after.allocate("v", ("n", "q"), &other).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("devices unavailable for nvidia.com/gpu")
        );
        let error = after.check_allocated("u", "c").unwrap_err();
        assert_eq!(error, AllocationError::NoHealthyDevice(GPU.to_owned()));
        after.plugins = devices(2).plugins;
        after.check_allocated("u", "c").unwrap();
        after.allocate("v", ("n", "q"), &other).unwrap();
    }
}
