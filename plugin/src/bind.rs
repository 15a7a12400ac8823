//! Reserve and Bind of the scheduler framework: plan, assume the claim, and one write to the API server.

use std::{collections::BTreeMap, time::Duration};

use daemon::pods;
use domain::{
    demand::Demand, keys, mode::ChosenBy, pod::PodName, refusal::Refusal, request::DemandError,
};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, PostParams},
    core::Status,
};
use placement::plan::outcome::Plan;

use crate::{context::Context, protocol::ExtenderBindingArgs};

/// How long an assumed claim is believed without being seen: longer than any watch lags.
const ASSUMED_CLAIM_TIMEOUT: Duration = Duration::from_mins(1);
/// Limit of a request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a pod was not bound; kube-scheduler reports it in the pod's event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// The API server did not return the pod in time.
    #[error("timed out reading the pod from the API server")]
    ReadTimeout,
    /// The API server refused to return the pod.
    #[error("cannot read the pod: {0}")]
    Read(#[source] kube::Error),
    /// The pod that kube-scheduler placed is gone.
    #[error("pod {0} was replaced by another pod of the same name")]
    Replaced(PodName),
    /// The webhook did not see this pod.
    #[error(transparent)]
    Demand(#[from] DemandError),
    /// What was free when the node was filtered is taken now.
    #[error("node {node} can no longer take the pod: {refusal}")]
    Refused {
        /// The node.
        node: String,
        /// What is scarce there.
        refusal: Box<Refusal>,
    },
    /// Nothing was bound.
    #[error("the API server refused the binding: {0}")]
    BindingRefused(#[source] kube::Error),
    /// The binding may have been carried out.
    #[error("the binding may have failed: {0}")]
    BindingUncertain(#[source] kube::Error),
    /// The binding may have been carried out.
    #[error("timed out waiting for the API server to confirm the binding")]
    BindingTimeout,
}

/// Binds the pod to the node, with its claim on the binding.
///
/// The API server merges the binding's annotations into the pod in the transaction that sets
/// `spec.nodeName`, and refuses a pod of another UID. So a bound pod always has its claim, and no lock is needed.
pub(crate) async fn bind(context: &Context, args: &ExtenderBindingArgs) -> Result<(), BindError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &args.pod_namespace);
    let pod = tokio::time::timeout(REQUEST_TIMEOUT, api.get(&args.pod_name))
        .await
        .map_err(|_| BindError::ReadTimeout)?
        .map_err(BindError::Read)?;
    if pod.uid().as_deref() != Some(&args.pod_uid) {
        return Err(BindError::Replaced(pods::name(&pod)));
    }
    let annotations = match Demand::read(&pods::request(&pod), &context.config)? {
        Some(demand) => {
            let plan = plan_and_assume(context, args, &demand)?;
            Some(annotations(&demand, &plan, &args.node))
        }
        None => None,
    };
    let binding = binding(args, annotations);
    let params = PostParams::default();
    let posted = api.create_subresource::<_, Status>("binding", &args.pod_name, &params, &binding);
    match tokio::time::timeout(REQUEST_TIMEOUT, posted).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error @ kube::Error::Api(_))) => {
            context.cluster.write().forget(&args.pod_uid);
            Err(BindError::BindingRefused(error))
        }
        // The claim stays assumed until the watch shows it or its deadline passes.
        Ok(Err(error)) => Err(BindError::BindingUncertain(error)),
        Err(_) => Err(BindError::BindingTimeout),
    }
}

fn plan_and_assume(
    context: &Context,
    args: &ExtenderBindingArgs,
    demand: &Demand,
) -> Result<Plan, BindError> {
    // One lock over planning and assuming: no two pods get one slot.
    let mut cluster = context.cluster.write();
    cluster.expire(context.now());
    // What was reserved for the pod is its own.
    cluster.forget(&args.pod_uid);
    let plan = cluster
        .plan(&args.node, demand, &context.config)
        .map_err(|refusal| BindError::Refused {
            node: args.node.clone(),
            refusal: Box::new(refusal),
        })?;
    let deadline = context.deadline(ASSUMED_CLAIM_TIMEOUT);
    cluster.assume(&args.pod_uid, &args.node, plan.claim.clone(), deadline);
    Ok(plan)
}

fn annotations(demand: &Demand, plan: &Plan, node: &str) -> BTreeMap<String, String> {
    let chosen_by = match demand.mode {
        Some(_) => ChosenBy::User,
        None => ChosenBy::Tessera,
    };
    BTreeMap::from([
        (keys::CLAIM.to_owned(), plan.claim.to_annotation()),
        (keys::NODE.to_owned(), node.to_owned()),
        (keys::VGPU_MODE.to_owned(), plan.mode.to_string()),
        (keys::VGPU_MODE_BY.to_owned(), chosen_by.to_string()),
    ])
}

fn binding(args: &ExtenderBindingArgs, annotations: Option<BTreeMap<String, String>>) -> Binding {
    Binding {
        metadata: ObjectMeta {
            name: Some(args.pod_name.clone()),
            uid: Some(args.pod_uid.clone()),
            annotations,
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(args.node.clone()),
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_cluster::SharedCluster;
    use std::sync::Arc;

    use domain::{config::Config, fixtures, mode::VgpuMode};
    use http::{Request, Response};
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    fn context() -> (
        Context,
        tower_test::mock::Handle<Request<Body>, Response<Body>>,
    ) {
        let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let cluster = SharedCluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.write().apply_node("n", node);
        let client = Client::new(service, "default");
        let context = Context::new(client, cluster, Arc::new(Config::default()));
        (context, server)
    }

    fn args(uid: &str) -> ExtenderBindingArgs {
        serde_json::from_value(
            json!({ "PodName": "p", "PodNamespace": "ns", "PodUID": uid, "Node": "n" }),
        )
        .unwrap()
    }

    fn pod(uid: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "ns", "uid": uid },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } })
    }

    fn answer(value: &Value, status: u16) -> Response<Body> {
        Response::builder()
            .status(status)
            .body(Body::from(value.to_string().into_bytes()))
            .unwrap()
    }

    #[tokio::test]
    async fn the_claim_is_on_the_binding_and_the_next_pod_finds_the_slot_taken() {
        let (context, mut server) = context();
        let first = tokio::spawn({
            let context = context.clone();
            async move { bind(&context, &args("u")).await }
        });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("u"), 200));
        let (request, reply) = server.next_request().await.unwrap();
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", "/api/v1/namespaces/ns/pods/p/binding")
        );
        let body: Value =
            serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        assert_eq!(body["metadata"]["uid"], "u");
        let annotations = &body["metadata"]["annotations"];
        assert!(
            annotations["tessera.dev/claim"]
                .as_str()
                .unwrap()
                .contains("4g.24gb")
        );
        assert_eq!(annotations["nvidia.com/vgpu-mode"], "mig");
        assert_eq!(annotations["tessera.dev/vgpu-mode-by"], "tessera");
        reply.send_response(answer(
            &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
            201,
        ));
        first.await.unwrap().unwrap();
        let second = tokio::spawn({
            let context = context.clone();
            async move { bind(&context, &args("w")).await }
        });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("w"), 200));
        let error = second.await.unwrap().unwrap_err().to_string();
        assert_eq!(
            error,
            "node n can no longer take the pod: no free GPU memory for 4g.24gb (GPUs are full)"
        );
    }

    #[tokio::test]
    async fn a_refused_binding_leaves_the_slot_free() {
        let (context, mut server) = context();
        let bound = tokio::spawn({
            let context = context.clone();
            async move { bind(&context, &args("u")).await }
        });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("u"), 200));
        let (_, reply) = server.next_request().await.unwrap();
        let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
            "reason": "Conflict", "message": "already assigned" });
        reply.send_response(answer(&refusal, 409));
        let error = bound.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("already assigned"), "{error}");
        assert_eq!(context.cluster.read().claims(), 0);
    }

    #[tokio::test]
    async fn a_pod_of_the_same_name_is_not_the_same_pod() {
        let (context, mut server) = context();
        let bound = tokio::spawn(async move { bind(&context, &args("u")).await });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("other"), 200));
        let error = bound.await.unwrap().unwrap_err();
        assert!(matches!(error, BindError::Replaced(_)), "{error}");
    }
}
