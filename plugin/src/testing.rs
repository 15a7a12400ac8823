//! An API server in memory with what binding needs: pods with versions, their bindings, and one Lease.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use domain::claim::{Claim, Slot};
use http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// What happens to the binding of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is carried out, and the answer is an error.
    AnswerLost,
    /// It is answered with an error, and carried out (or refused) only at [`FakeApi::deliver`].
    Late,
    /// It is carried out (or refused), and answered, only at [`FakeApi::deliver`].
    Held,
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<String, Value>,
    lease: Option<Value>,
    faults: BTreeMap<String, Fault>,
    bindings: u32,
    /// Outcome of those that were late or held.
    delivered: Vec<u16>,
}

/// The server; a clone is the same one.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    deliver: Arc<Notify>,
}

type Answer = (u16, Value);

fn refused(code: u16) -> Answer {
    let reason = if code == 404 { "NotFound" } else { "Fake" };
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": "refused by the fake" });
    (code, status)
}

impl State {
    fn touch(&mut self, object: &mut Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }

    fn bind(&mut self, name: &str, binding: &Value) -> Answer {
        self.bindings += 1;
        let Some(mut pod) = self.pods.get(name).cloned() else {
            return refused(404);
        };
        let given = |field: &str| binding["metadata"].get(field).cloned();
        let differs = |field: &str| given(field).is_some_and(|v| v != pod["metadata"][field]);
        if differs("uid") || differs("resourceVersion") || pod["spec"]["nodeName"].is_string() {
            return refused(409);
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        pod["metadata"]["annotations"] = binding["metadata"]["annotations"].clone();
        self.touch(&mut pod);
        self.pods.insert(name.to_owned(), pod);
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
        (201, status)
    }

    fn patch_status(&mut self, name: &str, patch: &Value) -> Answer {
        let Some(mut pod) = self.pods.get(name).cloned() else {
            return refused(404);
        };
        if patch["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"] {
            return refused(409);
        }
        pod["status"] = patch["status"].clone();
        self.touch(&mut pod);
        self.pods.insert(name.to_owned(), pod.clone());
        (200, pod)
    }

    fn put_lease(&mut self, mut lease: Value, create: bool) -> Answer {
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        let known = self.lease.as_ref().map(version);
        let expected = (!create).then(|| version(&lease));
        if known != expected {
            return refused(409);
        }
        self.touch(&mut lease);
        self.lease = Some(lease.clone());
        (200, lease)
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> Answer {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["api", "v1", "pods"]) => {
                let items: Vec<_> = self.pods.values().collect();
                let list = json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items });
                (200, list)
            }
            ("GET", ["api", "v1", "namespaces", _, "pods", name]) => {
                let pod = self.pods.get(*name).cloned();
                pod.map_or_else(|| refused(404), |pod| (200, pod))
            }
            ("POST", ["api", "v1", "namespaces", _, "pods", name, "binding"]) => {
                self.bind(name, body)
            }
            ("PATCH", ["api", "v1", "namespaces", _, "pods", name, "status"]) => {
                self.patch_status(name, body)
            }
            ("GET", [.., "leases", _]) => {
                let lease = self.lease.clone();
                lease.map_or_else(|| refused(404), |lease| (200, lease))
            }
            ("POST", [.., "leases"]) => self.put_lease(body.clone(), true),
            ("PUT", [.., "leases", _]) => self.put_lease(body.clone(), false),
            _ => refused(405),
        }
    }
}

impl FakeApi {
    /// A client of its own connection.
    pub(crate) fn client(&self) -> Client {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let api = self.clone();
        tokio::spawn(async move {
            while let Some((request, reply)) = server.next_request().await {
                let api = api.clone();
                tokio::spawn(async move {
                    let (code, value) = api.serve(request).await;
                    let body = Body::from(value.to_string().into_bytes());
                    reply.send_response(Response::builder().status(code).body(body).unwrap());
                });
            }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let (method, path) = (parts.method, parts.uri.path().to_owned());
        let answer = |api: &Self| api.lock().answer(&method, &path, &body);
        let pod = path
            .strip_suffix("/binding")
            .and_then(|p| p.rsplit('/').next());
        let fault = pod.and_then(|name| self.lock().faults.remove(name));
        match fault {
            None => answer(self),
            Some(Fault::AnswerLost) => {
                answer(self);
                refused(500)
            }
            Some(Fault::Held) => {
                self.deliver.notified().await;
                let (code, value) = answer(self);
                self.lock().delivered.push(code);
                (code, value)
            }
            Some(Fault::Late) => {
                let api = self.clone();
                tokio::spawn(async move {
                    api.deliver.notified().await;
                    let (code, _) = api.lock().answer(&method, &path, &body);
                    api.lock().delivered.push(code);
                });
                refused(504)
            }
        }
    }

    /// Creates a pod (UID = name) that asks for one device of so many MiB.
    pub(crate) fn create_pod(&self, name: &str, mib: &str) {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "ns", "uid": name },
            "spec": { "schedulerName": "tessera-scheduler", "containers": [{ "name": "c",
                "resources": { "limits": { "nvidia.com/gpu": "1", "nvidia.com/gpumem": mib } } }] } });
        let mut state = self.lock();
        state.touch(&mut pod);
        state.pods.insert(name.to_owned(), pod);
    }

    /// What happens to the next binding of a pod.
    pub(crate) fn fault(&self, pod: &str, fault: Fault) {
        self.lock().faults.insert(pod.to_owned(), fault);
    }

    /// Carries out what is held or late.
    pub(crate) async fn deliver(&self) {
        self.deliver.notify_waiters();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    /// Number of bindings that arrived.
    pub(crate) fn bindings(&self) -> u32 {
        self.lock().bindings
    }

    /// Codes of the bindings that were late or held.
    pub(crate) fn delivered(&self) -> Vec<u16> {
        self.lock().delivered.clone()
    }

    /// The node of each pod that is bound.
    pub(crate) fn bound(&self) -> BTreeMap<String, String> {
        let state = self.lock();
        let node = |pod: &Value| pod["spec"]["nodeName"].as_str().map(str::to_owned);
        let pods = state.pods.iter();
        pods.filter_map(|(name, pod)| Some((name.clone(), node(pod)?)))
            .collect()
    }

    /// The pairs of slots that overlap although two pods have them.
    pub(crate) fn double_booked(&self) -> Vec<(Slot, Slot)> {
        let state = self.lock();
        let claims = state.pods.values().filter_map(|pod| {
            let text = pod["metadata"]["annotations"]["tessera.dev/claim"].as_str()?;
            Some(Claim::from_annotation(text).unwrap())
        });
        let slots: Vec<Slot> = claims
            .flat_map(|c| c.slots().cloned().collect::<Vec<_>>())
            .collect();
        let mut pairs = vec![];
        for (index, slot) in slots.iter().enumerate() {
            let overlaps =
                |other: &&Slot| other.gpu == slot.gpu && other.slices().overlaps(slot.slices());
            pairs.extend(
                slots[..index]
                    .iter()
                    .filter(overlaps)
                    .map(|other| (other.clone(), slot.clone())),
            );
        }
        pairs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
