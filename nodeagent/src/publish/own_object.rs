//! The node's `GpuNode` object as the API server has it, by a watch of this one object.

use std::sync::Arc;

use daemon::{
    gpu_node::{GpuNode, GpuNodeSpec},
    watches::{self, Change},
};
use domain::status::GpuNodeStatus;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, Resource, ResourceExt, api::ObjectMeta, runtime::watcher};
use tokio::sync::watch;

/// The object as it was seen last.
#[derive(Clone, Debug, Default)]
pub(crate) enum SeenObject {
    /// The watch has not delivered it yet.
    #[default]
    Unknown,
    /// It does not exist.
    Gone,
    /// It exists.
    There(Arc<GpuNode>),
}

/// What was written last.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// `metadata.resourceVersion` of that write.
    pub(crate) resource_version: String,
    pub(crate) status: GpuNodeStatus,
}

/// Watches the object and hands every change to `share`, forever.
pub(crate) async fn watch(client: Client, node_name: String, share: watch::Sender<SeenObject>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    watches::watch(Api::<GpuNode>::all(client), only, None, |change| {
        let seen = match change {
            Change::Apply(object) => SeenObject::There(Arc::from(object)),
            Change::Complete { names, .. } if names.contains(&node_name) => return,
            Change::Delete(_) | Change::Complete { .. } => SeenObject::Gone,
        };
        share.send_replace(seen);
    })
    .await;
}

impl SeenObject {
    /// Whether somebody else changed or deleted what was written: the scheduler does when it takes the agent for dead.
    pub(crate) fn differs_from(&self, written: &Written) -> bool {
        match self {
            Self::Unknown => false,
            Self::Gone => true,
            Self::There(object) => {
                let version = object.resource_version().unwrap_or_default();
                is_newer(&version, &written.resource_version)
                    && object.status.as_ref() != Some(&written.status)
            }
        }
    }

    /// The owners that the object should have, if its node is not among them.
    pub(crate) fn owners_to_set(&self, node: &Node) -> Option<Vec<OwnerReference>> {
        let Self::There(object) = self else {
            return None;
        };
        let owner = owner(node)?;
        let mut owners = object.owner_references().to_vec();
        if owners.iter().any(|known| known.uid == owner.uid) {
            return None;
        }
        // A reference to a node that was recreated under the same name would have the object deleted.
        owners.retain(|known| known.kind != owner.kind);
        owners.push(owner);
        Some(owners)
    }
}

/// The object without status. It is garbage collected with its node.
pub(crate) fn empty_object(name: &str, node: &Node) -> GpuNode {
    GpuNode {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner(node).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: GpuNodeSpec {},
        status: None,
    }
}

fn owner(node: &Node) -> Option<OwnerReference> {
    // The node owns the object, but no controller of the node manages it.
    Some(OwnerReference {
        controller: None,
        ..node.controller_owner_ref(&())?
    })
}

/// Resource versions are numbers that grow; where they are not, another one counts as newer.
fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}

#[cfg(test)]
mod tests {
    use domain::{fixtures, mode::VgpuMode};

    use super::*;

    fn node(uid: &str) -> Node {
        let metadata = serde_json::json!({ "name": "n", "uid": uid });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).unwrap()
    }

    fn status(gpus: u32) -> GpuNodeStatus {
        fixtures::node("n", &fixtures::a30(), gpus, VgpuMode::Mig)
    }

    fn seen(version: &str, gpus: u32) -> SeenObject {
        let mut object = empty_object("n", &node("u"));
        object.metadata.resource_version = Some(version.to_owned());
        object.status = Some(status(gpus));
        SeenObject::There(Arc::new(object))
    }

    /// Issue 12: the scheduler marks the GpuNode of an agent that it takes for dead; a living one publishes again.
    #[test]
    fn what_somebody_else_wrote_is_noticed_and_what_the_agent_wrote_is_not() {
        let written = Written {
            resource_version: "100".to_owned(),
            status: status(2),
        };
        for (object, differs) in [
            (SeenObject::Unknown, false),
            (SeenObject::Gone, true),
            (seen("100", 2), false),
            // An earlier write of ours that the watch delivers late.
            (seen("99", 1), false),
            (seen("101", 1), true),
            // Another owner or label is not our business.
            (seen("101", 2), false),
        ] {
            assert_eq!(object.differs_from(&written), differs, "{object:?}");
        }
    }

    /// Issue 12: the GpuNode goes with its node, also one that was there before the node.
    #[test]
    fn an_object_without_its_node_as_owner_gets_it() {
        let owned = seen("1", 1);
        assert_eq!(owned.owners_to_set(&node("u")), None);
        let recreated = owned.owners_to_set(&node("v")).unwrap();
        let uids: Vec<_> = recreated.iter().map(|owner| owner.uid.as_str()).collect();
        assert_eq!(uids, ["v"], "the old node would have it deleted");
        let SeenObject::There(object) = owned else {
            unreachable!()
        };
        let mut alone = object.as_ref().clone();
        alone.metadata.owner_references = None;
        let owners = SeenObject::There(Arc::new(alone)).owners_to_set(&node("u"));
        assert_eq!(owners.unwrap()[0].kind, "Node");
        assert_eq!(SeenObject::Gone.owners_to_set(&node("u")), None);
    }
}
