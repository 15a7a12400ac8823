//! `AdmissionReview` in, `AdmissionReview` out (`admission.k8s.io/v1`). Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::core::{
    DynamicObject,
    admission::{
        AdmissionRequest, AdmissionResponse, AdmissionReview, ConvertAdmissionReviewError,
        Operation, SerializePatchError,
    },
};

use crate::{
    metrics::Outcome,
    mutate::{View, mutate},
};

/// A body that is no review of a pod.
#[derive(Debug, thiserror::Error)]
enum InvalidReview {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    NoRequest(#[from] ConvertAdmissionReviewError),
}

/// A patch that cannot be written.
#[derive(Debug, thiserror::Error)]
enum PatchError {
    #[error(transparent)]
    Pod(#[from] serde_json::Error),
    #[error(transparent)]
    Patch(#[from] SerializePatchError),
}

/// Answers the body of a request.
pub(crate) fn review(body: &[u8], view: View<'_>) -> (AdmissionReview<DynamicObject>, Outcome) {
    let (response, outcome) = match parse(body) {
        Ok(request) => admit(&request, view),
        Err(error) => (
            AdmissionResponse::invalid(format!("not a review of a pod: {error}")),
            Outcome::invalid,
        ),
    };
    (response.into_review(), outcome)
}

fn parse(body: &[u8]) -> Result<AdmissionRequest<Pod>, InvalidReview> {
    let review: AdmissionReview<Pod> = serde_json::from_slice(body)?;
    Ok(review.try_into()?)
}

fn admit(request: &AdmissionRequest<Pod>, view: View<'_>) -> (AdmissionResponse, Outcome) {
    let mut response = AdmissionResponse::from(request);
    let (Operation::Create, Some(pod)) = (&request.operation, &request.object) else {
        return (response, Outcome::unchanged);
    };
    let (mutated, warnings) = match mutate(pod.clone(), view) {
        Ok(result) => result,
        Err(denial) => return (response.deny(denial.to_string()), Outcome::refused),
    };
    response.warnings = (!warnings.is_empty()).then_some(warnings);
    if mutated == *pod {
        return (response, Outcome::unchanged);
    }
    match patch(response, pod, &mutated) {
        Ok(response) => (response, Outcome::changed),
        Err(error) => (
            AdmissionResponse::from(request).deny(format!("cannot patch the pod: {error}")),
            Outcome::invalid,
        ),
    }
}

/// Adds the difference of the pods: fields that this build does not know stay as they are.
fn patch(
    response: AdmissionResponse,
    before: &Pod,
    after: &Pod,
) -> Result<AdmissionResponse, PatchError> {
    let (before, after) = (serde_json::to_value(before)?, serde_json::to_value(after)?);
    Ok(response.with_patch(json_patch::diff(&before, &after))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_nodes::GpuNodes;
    use domain::{config::Config, fixtures, mode::VgpuMode};
    use placement::cluster::Cluster;
    use serde_json::{Value, json};

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n1", &fixtures::a100_80gb(), 2, VgpuMode::Mig);
        cluster.apply_node("n1", node);
        cluster
    }

    fn answer(body: &[u8]) -> (AdmissionReview<DynamicObject>, Outcome) {
        let view = View {
            cluster: &cluster(),
            gpu_nodes: &GpuNodes::default(),
            config: &Config::default(),
        };
        review(body, view)
    }

    fn ask(operation: &str, pod: &Value) -> Vec<u8> {
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "7", "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": operation, "userInfo": { "username": "ada" }, "dryRun": true, "object": pod } })
        .to_string()
        .into_bytes()
    }

    fn seed() -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "annotations": { "nvidia.com/vgpu-mode": "mig" } },
            "spec": { "schedulerName": "default-scheduler", "aFieldOfTomorrow": { "a": 1 },
                "containers": [{ "name": "c", "resources": {
                    "limits": { "nvidia.com/gpu": "2", "nvidia.com/gpumem": "8k" },
                    "requests": { "nvidia.com/gpu": "2", "nvidia.com/gpumem": "8k" } } }] } })
    }

    #[test]
    fn the_patch_makes_the_pod_ours_and_touches_nothing_else() {
        let (answer, outcome) = answer(&ask("CREATE", &seed()));
        assert_eq!(outcome, Outcome::changed);
        // kube writes the patch as an array of bytes, which Go's decoder takes for []byte.
        let wire = serde_json::to_value(&answer).unwrap();
        assert_eq!(
            (&wire["response"]["uid"], &wire["response"]["allowed"]),
            (&json!("7"), &json!(true))
        );
        let bytes: Vec<u8> = serde_json::from_value(wire["response"]["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
        let mut pod = seed();
        json_patch::patch(&mut pod, &patch).unwrap();
        let mut expected = seed();
        expected["spec"]["schedulerName"] = json!("tessera-scheduler");
        expected["spec"]["containers"][0]["env"] =
            json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "void" }]);
        expected["metadata"]["annotations"]["tessera.dev/node"] = json!("n1");
        expected["metadata"]["annotations"]["tessera.dev/vgpu-mode-by"] = json!("user");
        assert_eq!(pod, expected);
    }

    #[test]
    fn a_denial_is_one_sentence() {
        let mut pod = seed();
        pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpumem"] = json!("8Gi");
        let (answer, outcome) = answer(&ask("CREATE", &pod));
        assert_eq!(outcome, Outcome::refused);
        let response = answer.response.unwrap();
        assert!(!response.allowed);
        assert_eq!(
            response.result.message,
            "container \"c\": nvidia.com/gpumem: \"8Gi\" has a unit, but this resource counts MiB already; write 8192"
        );
    }

    #[test]
    fn only_the_creation_of_pods_is_of_interest() {
        let (answer, outcome) = answer(&ask("UPDATE", &seed()));
        assert_eq!(outcome, Outcome::unchanged);
        assert!(answer.response.unwrap().patch.is_none());
    }

    #[test]
    fn what_is_no_review_is_refused_in_words() {
        for body in [&b"junk"[..], b"{}", b"[1]"] {
            let (answer, outcome) = answer(body);
            assert_eq!(outcome, Outcome::invalid);
            let response = answer.response.unwrap();
            assert!(!response.allowed);
            assert!(
                response
                    .result
                    .message
                    .starts_with("not a review of a pod: ")
            );
        }
    }
}
