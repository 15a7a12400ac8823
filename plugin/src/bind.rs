//! Reserve and Bind of the scheduler framework: plan, assume, and one write to the API server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use daemon::{follow::Shared, pods};
use domain::{config::Config, demand::Demand, keys};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    core::Status,
};

use crate::protocol::ExtenderBindingArgs;

/// How long an assumed claim is believed without being seen: longer than any watch lags.
const ASSUMED: Duration = Duration::from_mins(1);
/// Limit of a call to the API server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Binds pods with their claims.
#[derive(Clone)]
pub struct Binder {
    /// The API server.
    pub client: Client,
    /// The view, with the claims assumed here.
    pub cluster: Shared,
    /// Settings.
    pub config: Config,
    /// What [`Binder::now`] counts from.
    pub epoch: Instant,
}

impl Binder {
    /// Milliseconds since the epoch of this process, the clock of assumed claims.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Binds the pod to the node, with its claim on the binding; the error is a sentence for the pod's event.
    ///
    /// The API server merges the binding's annotations into the pod in the transaction that sets
    /// `spec.nodeName`, and refuses a pod of another UID, so a bound pod always has its claim and no lock is needed.
    pub async fn bind(&self, args: &ExtenderBindingArgs) -> Result<(), String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &args.pod_namespace);
        let pod = tokio::time::timeout(PATIENCE, api.get(&args.pod_name))
            .await
            .map_err(|_| "the API server did not answer in time".to_owned())?
            .map_err(|error| format!("the pod cannot be read: {error}"))?;
        if pod.uid().as_deref() != Some(&args.pod_uid) {
            return Err(format!(
                "pod {} was replaced by another of its name",
                pods::key(&pod)
            ));
        }
        let demand =
            Demand::read(&pods::request(&pod), &self.config).map_err(|error| error.to_string())?;
        let mut annotations = BTreeMap::new();
        if let Some(demand) = &demand {
            let deadline = self.now() + u64::try_from(ASSUMED.as_millis()).unwrap_or(u64::MAX);
            let plan = {
                // One lock over planning and assuming: no two pods get one slot.
                let mut cluster = self.cluster.write();
                cluster.expire(self.now());
                cluster.forget(&args.pod_uid);
                let plan = cluster
                    .plan(&args.node, demand, &self.config)
                    .map_err(|refusal| {
                        format!("node {} cannot take the pod any more: {refusal}", args.node)
                    })?;
                cluster.assume(&args.pod_uid, &args.node, plan.claim.clone(), deadline);
                plan
            };
            let by = if demand.mode.is_some() {
                "user"
            } else {
                "tessera"
            };
            annotations.extend([
                (keys::CLAIM.to_owned(), plan.claim.to_annotation()),
                (keys::NODE.to_owned(), args.node.clone()),
                (keys::VGPU_MODE.to_owned(), plan.mode.to_string()),
                (keys::VGPU_MODE_BY.to_owned(), by.to_owned()),
            ]);
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(args.pod_name.clone()),
                uid: Some(args.pod_uid.clone()),
                annotations: (!annotations.is_empty()).then_some(annotations),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(args.node.clone()),
                ..ObjectReference::default()
            },
        };
        let params = PostParams::default();
        let posted =
            api.create_subresource::<_, Status>("binding", &args.pod_name, &params, &binding);
        match tokio::time::timeout(PATIENCE, posted).await {
            Ok(Ok(_)) => Ok(()),
            // Refused: nothing is bound.
            Ok(Err(error @ kube::Error::Api(_))) => {
                self.cluster.write().forget(&args.pod_uid);
                Err(format!("the binding was refused: {error}"))
            }
            // It may have been carried out: the claim stays assumed until the watch or its deadline tells.
            Ok(Err(error)) => Err(format!("the binding may have failed: {error}")),
            Err(_) => Err("the API server did not answer the binding in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode};
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    fn binder() -> (
        Binder,
        tower_test::mock::Handle<Request<Body>, Response<Body>>,
    ) {
        let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let cluster = Shared::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.write().apply_node("n", node);
        let binder = Binder {
            client: Client::new(service, "default"),
            cluster,
            config: Config::default(),
            epoch: Instant::now(),
        };
        (binder, server)
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
        let (binder, mut server) = binder();
        let first = tokio::spawn({
            let binder = binder.clone();
            async move { binder.bind(&args("u")).await }
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
            let binder = binder.clone();
            async move { binder.bind(&args("w")).await }
        });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("w"), 200));
        let words = second.await.unwrap().unwrap_err();
        assert_eq!(
            words,
            "node n cannot take the pod any more: no free GPU memory for 4g.24gb (GPUs are full)"
        );
    }

    #[tokio::test]
    async fn a_refused_binding_leaves_the_slot_free() {
        let (binder, mut server) = binder();
        let bound = tokio::spawn({
            let binder = binder.clone();
            async move { binder.bind(&args("u")).await }
        });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("u"), 200));
        let (_, reply) = server.next_request().await.unwrap();
        let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
            "reason": "Conflict", "message": "already assigned" });
        reply.send_response(answer(&refusal, 409));
        let words = bound.await.unwrap().unwrap_err();
        assert!(words.contains("already assigned"), "{words}");
        assert_eq!(binder.cluster.read().claims(), 0);
    }

    #[tokio::test]
    async fn a_pod_of_the_same_name_is_not_the_same_pod() {
        let (binder, mut server) = binder();
        let bound = tokio::spawn(async move { binder.bind(&args("u")).await });
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(answer(&pod("other"), 200));
        assert!(bound.await.unwrap().unwrap_err().contains("replaced"));
    }
}
