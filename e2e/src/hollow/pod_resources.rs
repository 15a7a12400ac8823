//! `PodResources`: which container has which device ids.

use std::sync::Arc;

use domain::demand::ContainerKind;
use nodeagent::kubelet::api::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    ContainerResources, GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse, PodResources, pod_resources_lister_server::PodResourcesLister,
};
use tonic::{Request, Response, Status};

use super::node::Node;

/// The service of `PodResources`.
pub(super) struct AllocationLister(pub(super) Arc<Node>);

#[tonic::async_trait]
impl PodResourcesLister for AllocationLister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: self.pods(|_, _| true),
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let devices = self.0.with_devices(|devices| {
            devices
                .plugins
                .iter()
                .map(|(name, plugin)| ContainerDevices {
                    resource_name: name.clone(),
                    device_ids: plugin.ids.keys().cloned().collect(),
                    ..ContainerDevices::default()
                })
                .collect()
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices,
            ..AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let asked = request.into_inner();
        let found =
            self.pods(|namespace, name| namespace == asked.pod_namespace && name == asked.pod_name);
        match found.into_iter().next() {
            Some(pod) => Ok(Response::new(GetPodResourcesResponse {
                pod_resources: Some(pod),
            })),
            None => Err(Status::not_found("no such pod")),
        }
    }
}

impl AllocationLister {
    /// The pods with their containers' ids, without ordinary init containers.
    fn pods(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<PodResources> {
        self.0.with_devices(|devices| {
            let mut pods: Vec<PodResources> = Vec::new();
            for allocation in &devices.allocations {
                let Some((namespace, name)) = &allocation.pod else {
                    continue;
                };
                if allocation.kind == Some(ContainerKind::Init) || !wanted(namespace, name) {
                    continue;
                }
                let at = pods
                    .iter()
                    .position(|p| p.namespace == *namespace && p.name == *name);
                let at = at.unwrap_or_else(|| {
                    pods.push(PodResources {
                        name: name.clone(),
                        namespace: namespace.clone(),
                        ..PodResources::default()
                    });
                    pods.len() - 1
                });
                pods[at].containers.push(ContainerResources {
                    name: allocation.container.clone(),
                    devices: vec![ContainerDevices {
                        resource_name: allocation.resource.clone(),
                        device_ids: allocation.ids.iter().cloned().collect(),
                        ..ContainerDevices::default()
                    }],
                    ..ContainerResources::default()
                });
            }
            pods
        })
    }
}
