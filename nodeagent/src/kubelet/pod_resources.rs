//! kubelet's `PodResources` service: every running container with its device ids, except ordinary init containers.

use std::path::Path;

use domain::pod::PodName;
use tonic::{Status, transport::Endpoint};

use crate::kubelet::{
    api::pod_resources::{
        ContainerResources, ListPodResourcesRequest,
        pod_resources_lister_client::PodResourcesListerClient,
    },
    id_holders::{DeviceIds, IdHolder, PodRef},
};

/// Largest answer in bytes: gRPC's default of 4 MiB is too small for a node with hundreds of pods.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The containers that hold ids of a resource.
pub(crate) async fn list(socket: &Path, resource: &str) -> Result<Vec<IdHolder>, Status> {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))
        .map_err(|error| Status::internal(error.to_string()))?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = PodResourcesListerClient::new(channel)
        .max_decoding_message_size(MAX_ANSWER_BYTES)
        .list(ListPodResourcesRequest {})
        .await?
        .into_inner();
    let holders = answer.pod_resources.into_iter().flat_map(|pod| {
        let name = PodName::new(pod.namespace, pod.name);
        pod.containers
            .into_iter()
            .filter_map(move |container| holder(&name, container, resource))
    });
    Ok(holders.collect())
}

fn holder(pod: &PodName, container: ContainerResources, resource: &str) -> Option<IdHolder> {
    // kubelet reports one list of ids per NUMA node; together they are the container's set.
    let ids: DeviceIds = container
        .devices
        .into_iter()
        .filter(|devices| devices.resource_name == resource)
        .flat_map(|devices| devices.device_ids)
        .collect();
    (!ids.is_empty()).then(|| IdHolder {
        pod: PodRef::Name(pod.clone()),
        container: container.name,
        ids,
    })
}
