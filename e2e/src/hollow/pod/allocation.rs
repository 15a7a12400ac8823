//! A pod's device ids: allocated when it is new, checked when it is known.

use std::collections::BTreeMap;

use domain::demand::ContainerKind;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use nodeagent::kubelet::api::device_plugin::{AllocateRequest, ContainerAllocateRequest};
use prost::Message;

use super::{containers::specs, pod_run::PodRun};
use crate::hollow::{
    devices::{AllocationError, Request},
    plugins::{self, PluginError},
};

/// Why kubelet does not admit a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmissionError {
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin's words.
    #[error("Allocate failed due to {0}, which is unexpected")]
    Refused(String),
}

impl PodRun {
    /// The ids of a pod that ran before this process started are in the checkpoint, without its name. As kubelet
    /// does, a container that does not run any more is admitted only while the device plugin is registered.
    pub(super) fn recognise(&self) -> Result<(), AdmissionError> {
        let name = (
            self.pod.namespace().unwrap_or_default(),
            self.pod.name_any(),
        );
        let kinds: BTreeMap<&str, ContainerKind> = specs(&self.pod)
            .map(|(kind, spec)| (spec.name.as_str(), kind))
            .collect();
        self.node.with_devices(|devices| {
            for allocation in devices
                .allocations
                .iter_mut()
                .filter(|allocation| allocation.uid == self.uid)
            {
                allocation.pod = Some(name.clone());
                allocation.kind = kinds.get(allocation.container.as_str()).copied();
            }
        });
        if self.pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let containers = self.lock();
        let ended = containers.iter().filter(|(_, c)| !c.state.is_running());
        for (name, _) in ended {
            self.node
                .with_devices(|devices| devices.check_allocated(&self.uid, name))?;
        }
        Ok(())
    }

    pub(super) async fn allocate(&self) -> Result<(), AdmissionError> {
        let requests = requests(&self.pod);
        let (namespace, name) = (
            self.pod.namespace().unwrap_or_default(),
            self.pod.name_any(),
        );
        let given = self
            .node
            .with_devices(|devices| devices.allocate(&self.uid, (&namespace, &name), &requests))?;
        for allocation in given {
            let endpoint = self.plugin(&allocation.resource)?.0;
            let request = AllocateRequest {
                container_requests: vec![ContainerAllocateRequest {
                    devices_ids: allocation.ids.iter().cloned().collect(),
                }],
            };
            let mut client = plugins::dial(&self.node, &endpoint).await?;
            let answer = client.allocate(request).await;
            let answer =
                answer.map_err(|status| AdmissionError::Refused(status.message().to_owned()))?;
            let response = answer.into_inner().container_responses.into_iter().next();
            let bytes = response.unwrap_or_default().encode_to_vec();
            self.node.with_devices(|devices| {
                let known = devices.allocations.iter_mut().find(|known| {
                    (&known.uid, &known.container, &known.resource)
                        == (&allocation.uid, &allocation.container, &allocation.resource)
                });
                if let Some(known) = known {
                    known.response = bytes;
                }
            });
        }
        self.node.save();
        Ok(())
    }

    /// Socket of a resource's plugin, and whether it wants `PreStartContainer`.
    pub(super) fn plugin(&self, resource: &str) -> Result<(String, bool), PluginError> {
        self.node
            .with_devices(|devices| {
                let plugin = devices.plugins.get(resource)?;
                Some((plugin.endpoint.clone(), plugin.pre_start))
            })
            .ok_or_else(|| PluginError::NotRegistered(resource.to_owned()))
    }
}

/// What the containers ask for of resources that are counted.
fn requests(pod: &Pod) -> Vec<Request> {
    specs(pod)
        .map(|(kind, spec)| {
            let limits = spec
                .resources
                .as_ref()
                .and_then(|resources| resources.limits.as_ref());
            let counts = limits.into_iter().flatten().filter_map(|(name, quantity)| {
                Some((
                    name.clone(),
                    quantity.0.parse().ok().filter(|count| *count > 0)?,
                ))
            });
            Request {
                container: spec.name.clone(),
                kind,
                counts: counts.collect(),
            }
        })
        .collect()
}
