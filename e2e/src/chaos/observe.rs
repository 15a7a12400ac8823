//! One look at the cluster: pods, GPUs behind NVML, containers on disk, and what the nodes publish.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use daemon::pods;
use e2e::{error::Error, tessera::agent};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{ResourceExt, api::ListParams};
use nvml_sim::state::State;
use serde_json::Value;

use super::{
    Chaos,
    look::{self, Container, Instance, Look, Place},
    nodes::{NODES, REAL},
};

impl Chaos {
    pub(super) async fn observe(&self) -> anyhow::Result<Look> {
        // What is the same before and after the look at the GPUs was so during it.
        let before = self.claimed_pods().await?;
        let at = self.started.elapsed();
        let instances = self.instances_behind_nvml()?;
        let mut pods = self.claimed_pods().await?;
        let published = self.published().await?;
        let ids = |pod: &look::Pod| -> Option<Vec<String>> {
            let containers = pod.running.as_ref()?.iter();
            Some(containers.map(|container| container.id.clone()).collect())
        };
        for pod in &mut pods {
            let known = before.iter().find(|known| known.uid == pod.uid);
            if known.and_then(ids) != ids(pod) {
                pod.running = None;
            }
        }
        Ok(Look {
            at,
            claimed: before.iter().flat_map(look::Pod::places).collect(),
            pods,
            instances,
            published,
        })
    }

    /// The GPUs of a node, behind NVML. Read without their lock, which a frozen agent may hold.
    pub(super) fn simulated_gpus(&self, node: &str) -> anyhow::Result<State> {
        let file = self.tessera.cluster.state_dir.gpus(node).join("state.json");
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }

    /// Every instance that exists, behind NVML.
    pub(super) fn instances_behind_nvml(&self) -> anyhow::Result<BTreeMap<Place, Instance>> {
        let mut all = BTreeMap::new();
        for node in NODES {
            for gpu in self.simulated_gpus(node)?.gpus {
                for instance in &gpu.instances {
                    let place = Place {
                        node: node.to_owned(),
                        gpu: gpu.uuid(),
                        start: instance.start,
                        size: instance.size,
                    };
                    let profile = gpu.model().by_id(instance.profile_id);
                    let compute = instance.compute.iter();
                    let instance = Instance {
                        identity: (instance.id, instance.serial),
                        profile: profile.map(|p| p.name.clone()).unwrap_or_default(),
                        compute: compute.map(|c| gpu.mig_uuid(instance, c)).collect(),
                    };
                    all.insert(place, instance);
                }
            }
        }
        Ok(all)
    }

    /// The pods with a claim that are not over.
    pub(super) async fn claimed_pods(&self) -> kube::Result<Vec<look::Pod>> {
        let all = self.pods().list(&ListParams::default()).await?;
        let holding = all.iter().filter(|pod| !pods::is_over(pod));
        let holding = holding.filter_map(|pod| {
            let claim = pods::claim(pod)?.ok()?;
            let node = pods::node(pod)?.to_owned();
            let since = self.rebooted.get(node.as_str()).copied();
            Some(look::Pod {
                uid: pod.uid()?,
                name: pod.name_any(),
                slots: claim.slots().cloned().collect(),
                running: running_containers(pod, since).map(|containers| {
                    containers
                        .into_iter()
                        .map(|(name, id)| {
                            let devices = self.devices(pod, &node, &name, &id);
                            Container { id, devices }
                        })
                        .collect()
                }),
                node,
            })
        });
        Ok(holding.collect())
    }

    /// The devices that a container was created with, as its runtime has it on disk.
    fn devices(&self, pod: &Pod, node: &str, name: &str, id: &str) -> Option<BTreeSet<String>> {
        let state_dir = &self.tessera.cluster.state_dir;
        let read =
            |file: &Path| -> Option<Value> { serde_json::from_slice(&fs::read(file).ok()?).ok() };
        let uuids = if node == REAL {
            let id = id.strip_prefix("containerd://")?;
            let tasks = state_dir
                .containerd_state()
                .join("io.containerd.runtime.v2.task/k8s.io");
            let config = read(&tasks.join(id).join("config.json"))?;
            let env = config["process"]["env"].as_array()?;
            let mut words = env.iter().filter_map(Value::as_str);
            words
                .find_map(|word| word.strip_prefix("TESSERA_DEVICES="))
                .unwrap_or_default()
                .to_owned()
        } else {
            let containers = state_dir.hollow().join(node).join("containers");
            let created = read(&containers.join(pod.uid()?).join(format!("{name}.json")))?;
            let uuids = created["env"]["TESSERA_DEVICES"].as_str();
            uuids.unwrap_or_default().to_owned()
        };
        let uuids = uuids.split(',').filter(|uuid| !uuid.is_empty());
        Some(uuids.map(str::to_owned).collect())
    }

    /// What the nodes publish whose agents run.
    pub(super) async fn published(&self) -> Result<BTreeMap<String, BTreeSet<Place>>, Error> {
        let mut all = BTreeMap::new();
        for (name, status) in self.tessera.gpu_nodes().await? {
            let agent = agent(&name);
            let frozen = self.frozen.iter().any(|frozen| frozen.name == agent);
            let running = self.tessera.cluster.processes.running(&agent).is_some();
            if !NODES.contains(&name.as_str()) || frozen || !running {
                continue;
            }
            let places = status.gpus.iter().flat_map(|gpu| {
                gpu.instances.iter().map(|instance| Place {
                    node: name.clone(),
                    gpu: gpu.uuid.clone(),
                    start: instance.start,
                    size: instance.size,
                })
            });
            all.insert(name.clone(), places.collect());
        }
        Ok(all)
    }
}

/// Name and id of a pod's containers, when all of them run. Containers that started before their node was rebooted do
/// not run any more, whatever was reported then.
fn running_containers(pod: &Pod, rebooted: Option<Timestamp>) -> Option<Vec<(String, String)>> {
    let status = pod.status.as_ref()?;
    let runs = status.phase.as_deref() == Some("Running");
    // Empty while a kubelet that does not admit the pod any more has not reported that yet.
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if !runs || pod.metadata.deletion_timestamp.is_some() || containers.is_empty() {
        return None;
    }
    containers
        .iter()
        .map(|container| {
            let running = container.state.as_ref()?.running.as_ref()?;
            let started = running.started_at.as_ref()?.0;
            let before = rebooted.is_some_and(|at| started.as_second() <= at.as_second());
            let id = container.container_id.clone()?;
            (!before).then_some((container.name.clone(), id))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerStatus;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_started_before_a_reboot_does_not_run_any_more() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "containerID": "x://1",
                "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": { "startedAt": "2026-01-01T00:00:10Z" } } }] }
        }))
        .unwrap();
        let at = |text: &str| Some(text.parse().unwrap());
        let all = Some(vec![("c".to_owned(), "x://1".to_owned())]);
        assert_eq!(running_containers(&pod, None), all);
        assert_eq!(running_containers(&pod, at("2026-01-01T00:00:09.9Z")), all);
        assert_eq!(running_containers(&pod, at("2026-01-01T00:00:10.9Z")), None);
        let with = |change: fn(&mut Vec<ContainerStatus>)| {
            let mut pod = pod.clone();
            let status = pod.status.as_mut().unwrap();
            change(status.container_statuses.as_mut().unwrap());
            pod
        };
        assert_eq!(
            running_containers(&with(|all| all[0].state = None), None),
            None
        );
        assert_eq!(running_containers(&with(Vec::clear), None), None);
    }
}
