//! Makes the bindings of a pod void that are still under way, and finds out whether one was carried out.

use domain::pod::PodName;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};

/// Type of the condition whose change gives the pod another version.
const CONDITION: &str = "tessera.dev/BindingFenced";

/// What a pod shows after it was fenced.
#[derive(Debug)]
pub(crate) enum Fenced {
    /// It was bound before.
    Bound(Box<Pod>),
    /// It is not bound, and no binding that was sent before will be carried out any more.
    Unbound,
    /// There is no such pod any more.
    Gone,
}

/// Changes a pod that has no node, by its version: every binding names the version that its sender read.
pub(crate) async fn fence(client: &Client, name: &PodName, uid: &str) -> kube::Result<Fenced> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    loop {
        let Some(pod) = api.get_opt(&name.name).await? else {
            return Ok(Fenced::Gone);
        };
        if pod.uid().as_deref() != Some(uid) {
            return Ok(Fenced::Gone);
        }
        if daemon::pods::node(&pod).is_some() {
            return Ok(Fenced::Bound(Box::new(pod)));
        }
        let version = pod.resource_version().unwrap_or_default();
        // The version in the message: without a difference the API server would write nothing.
        let message =
            format!("Bindings to a node that were decided at version {version} or before are void");
        let condition = serde_json::json!({
            "type": CONDITION, "status": "True", "reason": "SchedulerChanged", "message": message,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let patch = serde_json::json!({
            "metadata": { "uid": uid, "resourceVersion": version },
            "status": { "conditions": [condition] },
        });
        let params = PatchParams::default();
        match api
            .patch_status(&name.name, &params, &Patch::Strategic(patch))
            .await
        {
            Ok(_) => return Ok(Fenced::Unbound),
            // It changed, by a binding or otherwise; or it is gone.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => return Err(error),
        }
    }
}
