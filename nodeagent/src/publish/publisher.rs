//! Writes the node's `GpuNode` object whenever its status has changed.

use std::{sync::Arc, time::Duration};

use daemon::{gpu_node::GpuNode, ready::Latch};
use domain::{config::NodeConfig, status::GpuNodeStatus};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    gpus::{event::AgentEvent, inventory::Inventory},
    kubelet::registration::Registration,
    publish::{
        own_object::{self, SeenObject, Written},
        setting_mistakes,
        status::status,
    },
};

/// How long after a failed write the next is tried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest pause between two writes because somebody else changed the object.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
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
    /// The object as the API server has it.
    pub(crate) seen: watch::Receiver<SeenObject>,
    /// Receives every status that was written.
    pub(crate) published: watch::Sender<GpuNodeStatus>,
    /// Released when the first status with a registered device plugin was written.
    pub(crate) ready: Option<Latch>,
}

impl Publisher {
    /// Publishes every change, forever.
    pub(crate) async fn run(mut self) {
        let api: Api<GpuNode> = Api::all(self.client.clone());
        let mut written: Option<Written> = None;
        let mut repair_at = Instant::now();
        loop {
            let Some(node) = self.node.borrow_and_update().clone() else {
                // Without a node there is nothing to offer, and nothing that the object could go with.
                self.wait_for_change().await;
                continue;
            };
            let seen = self.seen.borrow_and_update().clone();
            let before = written.as_ref().map(|written| &written.status);
            let status = self.current_status(&node, before);
            let changed = before != Some(&status);
            let overwritten = written
                .as_ref()
                .is_some_and(|known| seen.differs_from(known));
            if overwritten && !changed {
                tokio::time::sleep_until(repair_at).await;
                repair_at = Instant::now() + REPAIR_INTERVAL;
                tracing::warn!("Somebody else changed the GpuNode object, publishing it again");
            }
            if changed || overwritten {
                match write(&api, &self.node_name, &node, &status).await {
                    Ok(resource_version) => {
                        self.announce(before, &status);
                        written = Some(Written {
                            resource_version,
                            status,
                        });
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "Cannot write the GpuNode object, trying again"
                        );
                        tokio::time::sleep(RETRY_INTERVAL).await;
                        continue;
                    }
                }
            }
            if let Some(owners) = seen.owners_to_set(&node) {
                set_owners(&api, &self.node_name, &owners).await;
            }
            self.wait_for_change().await;
        }
    }

    /// Tells everybody who waits for it what was written.
    fn announce(&mut self, before: Option<&GpuNodeStatus>, status: &GpuNodeStatus) {
        let before = before.map_or(&[][..], |before| &before.conditions);
        if let Some(event) = setting_mistakes::event(before, &status.conditions) {
            // A full queue means a storm of events; the condition has it.
            let _ = self.events.try_send(event);
        }
        self.published.send_replace(status.clone());
        if let Some(ready) = self.ready.take_if(|_| status.is_registered()) {
            ready.release();
        }
    }

    fn current_status(&mut self, node: &Node, last: Option<&GpuNodeStatus>) -> GpuNodeStatus {
        let inventory = self.inventory.borrow_and_update().clone();
        let registration = *self.registration.borrow_and_update();
        let before = last.map_or(&[][..], |status| &status.conditions);
        status(
            &inventory,
            Some(node),
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
            _ = self.seen.changed() => {}
            _ = self.registration.changed() => {}
        }
        tokio::time::sleep(BATCH_INTERVAL).await;
    }
}

/// Writes the status, and creates the object first if there is none. Returns the resource version.
async fn write(
    api: &Api<GpuNode>,
    name: &str,
    node: &Node,
    status: &GpuNodeStatus,
) -> kube::Result<String> {
    // A merge patch would leave fields that are absent now as they were: the status is replaced as a whole.
    let patch = serde_json::json!([{ "op": "add", "path": "/status", "value": status }]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let patch: Patch<()> = Patch::Json(patch);
    let params = PatchParams::default();
    let written = match api.patch_status(name, &params, &patch).await {
        Err(kube::Error::Api(refused)) if refused.is_not_found() => {
            let object = own_object::empty_object(name, node);
            api.create(&PostParams::default(), &object).await?;
            api.patch_status(name, &params, &patch).await?
        }
        other => other?,
    };
    Ok(written.resource_version().unwrap_or_default())
}

/// Makes the object go with its node. A failure is no reason not to publish: it is tried again with the next change.
async fn set_owners(api: &Api<GpuNode>, name: &str, owners: &[OwnerReference]) {
    let patch = serde_json::json!({ "metadata": { "ownerReferences": owners } });
    let patched = api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    if let Err(error) = patched {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "Cannot make the node the owner of its GpuNode object"
        );
    }
}
