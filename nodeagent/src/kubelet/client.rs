//! Where kubelet's files and sockets are, and what the agent reads from them.

use std::path::PathBuf;

use tonic::Status;

use crate::kubelet::{checkpoint, id_holders::IdHolder, pod_resources};

/// The kubelet of this node.
#[derive(Clone, Debug)]
pub(crate) struct Kubelet {
    /// Directory of device plugin sockets and of the checkpoint.
    pub(crate) directory: PathBuf,
    /// Socket of the `PodResources` service.
    pub(crate) pod_resources_socket: PathBuf,
    /// The resource that the device plugin provides.
    pub(crate) resource: String,
}

/// kubelet could not be asked who holds which ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    #[error("cannot read kubelet's checkpoint")]
    Checkpoint(#[from] tokio::task::JoinError),
    #[error("kubelet's PodResources service does not answer: {}", .0.message())]
    PodResources(Status),
}

impl Kubelet {
    /// The containers that hold ids of the resource, by the checkpoint and the `PodResources` service. Both lists are
    /// needed: the checkpoint names init containers, but its format is internal to kubelet and may change.
    pub(crate) async fn id_holders(&self) -> Result<Vec<IdHolder>, KubeletError> {
        let mut holders = self.checkpointed_holders().await?;
        match pod_resources::list(&self.pod_resources_socket, &self.resource).await {
            Ok(listed) => holders.extend(listed),
            Err(status) if holders.is_empty() => return Err(KubeletError::PodResources(status)),
            Err(status) => {
                tracing::debug!(
                    error = status.message(),
                    "PodResources does not answer; using kubelet's checkpoint alone"
                );
            }
        }
        Ok(holders)
    }

    /// The containers that hold ids of the resource, by the checkpoint alone.
    pub(crate) async fn checkpointed_holders(
        &self,
    ) -> Result<Vec<IdHolder>, tokio::task::JoinError> {
        let path = self.directory.join("kubelet_internal_checkpoint");
        let resource = self.resource.clone();
        tokio::task::spawn_blocking(move || checkpoint::read(&path, &resource)).await
    }
}
