//! Binds a pod to a node, with its claim on the binding.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

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

use super::settle::settle;
use crate::{context::Context, protocol::ExtenderBindingArgs};

/// Limit of all that is done for a request: kube-scheduler gives up after 15 s (`httpTimeout`).
const BIND_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of times that a pod is read and bound anew when it changed in between.
const MAX_VERSIONS: usize = 5;

/// Why a pod was not bound; kube-scheduler reports it in the pod's event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// An earlier request for the pod was not answered clearly.
    #[error("an earlier binding of the pod is under way, or its outcome is not known yet")]
    UnderWay,
    /// Another plugin may bind at the same time.
    #[error("this scheduler plugin may not bind now: {0}")]
    NotLeading(String),
    /// The API server did not return the pod in time.
    #[error("timed out reading the pod from the API server")]
    ReadTimeout,
    /// The API server refused to return the pod.
    #[error("cannot read the pod: {0}")]
    Read(#[source] kube::Error),
    /// The pod that kube-scheduler placed is gone.
    #[error("pod {0} was replaced by another pod of the same name")]
    Replaced(PodName),
    /// An earlier binding was carried out.
    #[error("pod {pod} is bound to node {node} already")]
    BoundElsewhere {
        /// The pod.
        pod: PodName,
        /// Where it is.
        node: String,
    },
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

impl BindError {
    /// Whether the binding may have been, or may still be, carried out.
    fn is_unclear(&self) -> bool {
        matches!(self, Self::BindingUncertain(_) | Self::BindingTimeout)
    }

    /// What an answer to a binding means.
    fn of_answer(error: kube::Error) -> Self {
        match error {
            // An answer of the API server that says that nothing was written. A 408 or 5xx does not: etcd may have
            // committed what the API server gave up waiting for.
            kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 408 => {
                Self::BindingRefused(kube::Error::Api(status))
            }
            error => Self::BindingUncertain(error),
        }
    }

    /// Whether the pod was changed since it was read, by a binding or otherwise.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::BindingRefused(kube::Error::Api(status)) if status.code == 409)
    }
}

/// Binds the pod to the node, with its claim on the binding; not to be cancelled: run it in a task of its own.
///
/// The API server merges the binding's annotations into the pod in the transaction that sets
/// `spec.nodeName`, and refuses a pod of another UID or version. So a bound pod always has its claim. The claim
/// is assumed before, and forgotten only when it is certain that the binding was not and will not be carried out.
pub(crate) async fn bind(context: Context, args: ExtenderBindingArgs) -> Result<(), BindError> {
    let deadline = Instant::now() + BIND_TIMEOUT;
    let (uid, name) = (
        &args.pod_uid,
        PodName::new(&args.pod_namespace, &args.pod_name),
    );
    let exclusive = context.pending.begin(uid, name.clone());
    let exclusive = exclusive.ok_or(BindError::UnderWay)?;
    let attempt = Attempt {
        context: &context,
        args: &args,
        deadline,
    };
    let Some(pod) = attempt.read().await? else {
        exclusive.bound();
        return Ok(());
    };
    let Some(demand) = Demand::read(&pods::request(&pod), &context.config)? else {
        return attempt.post(pod.resource_version(), None).await;
    };
    let under_way = context.leadership.begin();
    let bound = attempt.plan_and_post(&pod, &demand).await;
    match &bound {
        Ok(()) => exclusive.bound(),
        Err(error) if error.is_unclear() => {
            let uid = uid.clone();
            tokio::spawn(settle(context.clone(), name, uid, exclusive, under_way));
        }
        Err(_) => context.cluster.write().forget(uid),
    }
    bound
}

/// One request of kube-scheduler.
struct Attempt<'a> {
    context: &'a Context,
    args: &'a ExtenderBindingArgs,
    deadline: Instant,
}

impl Attempt<'_> {
    /// The pod; `None` where it is bound as asked: the answer to an earlier request was lost.
    async fn read(&self) -> Result<Option<Pod>, BindError> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.args.pod_namespace);
        let pod = tokio::time::timeout_at(self.deadline.into(), api.get(&self.args.pod_name))
            .await
            .map_err(|_| BindError::ReadTimeout)?
            .map_err(BindError::Read)?;
        if pod.uid().as_deref() != Some(&self.args.pod_uid) {
            return Err(BindError::Replaced(pods::name(&pod)));
        }
        let Some(node) = pods::node(&pod) else {
            return Ok(Some(pod));
        };
        // Whoever bound it: its claim counts from now on, not after the watch's delay.
        self.context.adopt(&pod);
        if node == self.args.node {
            return Ok(None);
        }
        Err(BindError::BoundElsewhere {
            pod: pods::name(&pod),
            node: node.to_owned(),
        })
    }

    /// Plans in one term and binds in the same: see [`crate::leadership`].
    async fn plan_and_post(&self, pod: &Pod, demand: &Demand) -> Result<(), BindError> {
        let leadership = &self.context.leadership;
        let term = leadership.wait(self.deadline).await;
        let term = term.map_err(BindError::NotLeading)?;
        let plan = self.plan_and_assume(demand)?;
        let annotations = annotations(demand, &plan, &self.args.node);
        let mut version = pod.resource_version();
        for _ in 0..MAX_VERSIONS {
            // After the pod was read, so that the version is void if the term is over.
            if leadership.term() != Some(term) {
                break;
            }
            match self.post(version, Some(annotations.clone())).await {
                Err(error) if error.is_conflict() => match self.read().await? {
                    None => return Ok(()),
                    Some(pod) if pod.metadata.deletion_timestamp.is_some() => return Err(error),
                    Some(pod) => version = pod.resource_version(),
                },
                done => return done,
            }
        }
        let interrupted = "its term ended, or the pod changed, while it was binding".to_owned();
        Err(BindError::NotLeading(interrupted))
    }

    fn plan_and_assume(&self, demand: &Demand) -> Result<Plan, BindError> {
        let Self { context, args, .. } = self;
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
        cluster.assume(&args.pod_uid, &args.node, plan.claim.clone());
        Ok(plan)
    }

    async fn post(
        &self,
        version: Option<String>,
        annotations: Option<BTreeMap<String, String>>,
    ) -> Result<(), BindError> {
        let Self { context, args, .. } = self;
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &args.pod_namespace);
        let (params, binding) = (PostParams::default(), binding(args, version, annotations));
        let posted =
            api.create_subresource::<_, Status>("binding", &args.pod_name, &params, &binding);
        match tokio::time::timeout_at(self.deadline.into(), posted).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(BindError::of_answer(error)),
            Err(_) => Err(BindError::BindingTimeout),
        }
    }
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

fn binding(
    args: &ExtenderBindingArgs,
    version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
) -> Binding {
    Binding {
        metadata: ObjectMeta {
            name: Some(args.pod_name.clone()),
            uid: Some(args.pod_uid.clone()),
            resource_version: version,
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

    use daemon::shutdown::CancellationToken;
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
        let token = CancellationToken::new();
        let context = Context::new(client, cluster, Arc::new(Config::default()), token);
        context
            .leadership
            .extend(Instant::now() + BIND_TIMEOUT, true);
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
        let first = tokio::spawn(bind(context.clone(), args("u")));
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
        let second = tokio::spawn(bind(context.clone(), args("w")));
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
        let bound = tokio::spawn(bind(context.clone(), args("u")));
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("u"), 200));
        let (_, reply) = server.next_request().await.unwrap();
        let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422,
            "reason": "Invalid", "message": "already assigned" });
        reply.send_response(answer(&refusal, 422));
        let error = bound.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("already assigned"), "{error}");
        assert_eq!(context.cluster.read().claims(), 0);
    }

    #[tokio::test]
    async fn a_pod_of_the_same_name_is_not_the_same_pod() {
        let (context, mut server) = context();
        let bound = tokio::spawn(bind(context, args("u")));
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("other"), 200));
        let error = bound.await.unwrap().unwrap_err();
        assert!(matches!(error, BindError::Replaced(_)), "{error}");
    }
}
