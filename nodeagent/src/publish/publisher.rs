//! Writes the node's `GpuNode` object whenever its status has changed.

use std::{sync::Arc, time::Duration};

use daemon::{
    gpu_node::{GpuNode, GpuNodeSpec},
    ready::Latch,
};
use domain::{config::NodeConfig, status::GpuNodeStatus};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::sync::{mpsc, watch};

use crate::{
    gpus::{event::AgentEvent, inventory::Inventory},
    kubelet::registration::Registration,
    publish::{setting_mistakes, status::status},
};

/// How long after a failed write the next is tried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Changes come in bursts while instances are created: what comes within this time is written together.
const BATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What is published, and who learns of it.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    /// Name of the node and of its object.
    pub(crate) node_name: String,
    /// The settings of this node.
    pub(crate) settings: NodeConfig,
    /// Receives the Events about mistakes in the settings.
    pub(crate) events: mpsc::Sender<AgentEvent>,
    /// Number of software shares per GPU.
    pub(crate) max_shares: u32,
    pub(crate) inventory: watch::Receiver<Arc<Inventory>>,
    pub(crate) node: watch::Receiver<Option<Node>>,
    pub(crate) registration: watch::Receiver<Registration>,
    /// Receives every status that was written.
    pub(crate) published: watch::Sender<GpuNodeStatus>,
    /// Released when the first status with a registered device plugin was written.
    pub(crate) ready: Option<Latch>,
}

impl Publisher {
    /// Publishes every change, forever.
    pub(crate) async fn run(mut self) {
        let api: Api<GpuNode> = Api::all(self.client.clone());
        let mut last: Option<GpuNodeStatus> = None;
        loop {
            let node = self.node.borrow_and_update().clone();
            let status = self.current_status(node.as_ref(), last.as_ref());
            if last.as_ref() != Some(&status) {
                if let Err(error) = write(&api, &self.node_name, node.as_ref(), &status).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "Cannot write the GpuNode object, trying again"
                    );
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
                let before = last.as_ref().map_or(&[][..], |last| &last.conditions);
                if let Some(event) = setting_mistakes::event(before, &status.conditions) {
                    // A full queue means a storm of events; the condition has it.
                    let _ = self.events.try_send(event);
                }
                self.published.send_replace(status.clone());
                if let Some(ready) = self.ready.take_if(|_| status.is_registered()) {
                    ready.release();
                }
                last = Some(status);
            }
            self.wait_for_change().await;
        }
    }

    fn current_status(
        &mut self,
        node: Option<&Node>,
        last: Option<&GpuNodeStatus>,
    ) -> GpuNodeStatus {
        let inventory = self.inventory.borrow_and_update().clone();
        let registration = *self.registration.borrow_and_update();
        let before = last.map_or(&[][..], |status| &status.conditions);
        status(
            &inventory,
            node,
            &self.settings,
            self.max_shares,
            registration,
            before,
        )
    }

    async fn wait_for_change(&mut self) {
        tokio::select! {
            _ = self.inventory.changed() => {}
            _ = self.node.changed() => {}
            _ = self.registration.changed() => {}
        }
        tokio::time::sleep(BATCH_INTERVAL).await;
    }
}

/// Writes the status, and creates the object first if there is none.
async fn write(
    api: &Api<GpuNode>,
    name: &str,
    node: Option<&Node>,
    status: &GpuNodeStatus,
) -> kube::Result<()> {
    // A merge patch would leave fields that are absent now as they were: the status is replaced as a whole.
    let patch = serde_json::json!([{ "op": "add", "path": "/status", "value": status }]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let patch: Patch<()> = Patch::Json(patch);
    let params = PatchParams::default();
    match api.patch_status(name, &params, &patch).await {
        Err(kube::Error::Api(refused)) if refused.is_not_found() => {
            api.create(&PostParams::default(), &empty_object(name, node))
                .await?;
            api.patch_status(name, &params, &patch).await?;
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// The object without status. It is garbage collected with its node.
fn empty_object(name: &str, node: Option<&Node>) -> GpuNode {
    let owner = node.and_then(|node| node.controller_owner_ref(&()));
    // The node owns the object, but no controller of the node manages it.
    let owner = owner.map(|owner| OwnerReference {
        controller: None,
        ..owner
    });
    GpuNode {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: GpuNodeSpec {},
        status: None,
    }
}
