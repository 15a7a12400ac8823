//! The object `GpuNode`; its schema is in `manifests/crd`.

use domain::status::GpuNodeStatus;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// The wishes of an admin for a node's GPUs: none, they are on the node's label.
#[derive(CustomResource, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "tessera.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    status = "GpuNodeStatus",
    schema = "disabled"
)]
pub struct GpuNodeSpec {}

#[cfg(test)]
mod tests {
    use domain::{
        demand::ContainerKind,
        fixtures,
        gpu::{Instance, InstanceState, UsedShare},
        mode::{NodeMode, VgpuMode},
        status::GpuNodeStatus,
    };
    use serde_json::Value;

    /// Every field of a value, by path, that a schema does not know: the API server would drop it.
    fn unknown(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    match schema["properties"].get(name) {
                        Some(schema) => unknown(value, schema, &path, found),
                        None => found.push(path),
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    unknown(item, &schema["items"], &format!("{path}[]"), found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_crd_knows_every_field_of_the_status() {
        let text = include_str!("../../manifests/crd/gpunodes.yaml");
        let crd: Value = serde_saphyr::from_str(text).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut status: GpuNodeStatus = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        status.mode = Some(NodeMode::Auto);
        status.conditions = vec![domain::status::Condition {
            kind: "Ready".into(),
            status: "True".into(),
            reason: "R".into(),
            message: "m".into(),
            last_transition_time: "2026-01-01T00:00:00Z".into(),
        }];
        let gpu = &mut status.gpus[0];
        gpu.changing_to = Some(VgpuMode::HamiCore);
        gpu.auto_mode = true;
        gpu.unhealthy = Some("x".into());
        gpu.numa = Some(0);
        gpu.instances = vec![Instance {
            profile: "1g.6gb".into(),
            start: 0,
            size: 1,
            gpu_instance_id: 3,
            uuid: Some("MIG-1".into()),
            memory_mib: 5_952,
            state: InstanceState::InUse,
            pod: Some("n/p".into()),
            pod_uid: Some("u".into()),
            container: Some("c".into()),
            reason: Some("r".into()),
        }];
        gpu.used_shares = vec![UsedShare {
            pod: "n/p".into(),
            pod_uid: "u".into(),
            container: "c".into(),
            kind: ContainerKind::Init,
            memory_mib: 1,
            cores: 1,
        }];
        let status = serde_json::to_value(status.with_summary()).unwrap();
        let mut found = vec![];
        unknown(
            &status,
            &schema["properties"]["status"],
            "status",
            &mut found,
        );
        assert_eq!(found, Vec::<String>::new());
        unknown(&serde_json::json!({ "new": 1 }), schema, "", &mut found);
        assert_eq!(found, [".new"], "the comparison itself finds a difference");
    }

    /// Issue 12: the scheduler may change only conditions; a policy has to name every other field.
    #[test]
    fn the_policy_of_the_scheduler_protects_every_field_but_the_conditions() {
        let crd = include_str!("../../manifests/crd/gpunodes.yaml");
        let crd: Value = serde_saphyr::from_str(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let fields = schema["properties"]["status"]["properties"].as_object();
        let policies = include_str!("../../manifests/admission/policies.yaml");
        for field in fields
            .unwrap()
            .keys()
            .filter(|field| *field != "conditions")
        {
            let protects = format!("object.?status.?{field} == oldObject.?status.?{field}");
            assert!(policies.contains(&protects), "{field}");
        }
    }
}
