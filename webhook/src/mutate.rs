//! What becomes of a pod at admission. Pure.

use std::collections::BTreeMap;

use daemon::pods;
use domain::{config::Config, demand::Demand, keys};
use k8s_openapi::{
    api::core::v1::{Container, EnvVar, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;
use placement::cluster::Cluster;

/// The variable by which NVIDIA's container runtime is asked for devices past any scheduler.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// Its value for "none": the runtime does nothing (NVIDIA Container Toolkit, "Environment variables").
const VOID: &str = "void";
/// Name that the API server fills in where the user names no scheduler.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// Warnings for the pod's author, shown by kubectl.
pub type Warnings = Vec<String>;

/// Makes a pod ours: scheduler, mode, node hint, device counts, no devices but those that are claimed.
///
/// The answer reserves nothing, so a dry run is the same. A pod that asks for none of the resources
/// only loses a `NVIDIA_VISIBLE_DEVICES` of its own.
///
/// # Errors
/// One sentence for the pod's author: what, where, how to write it right.
pub fn mutate(mut pod: Pod, cluster: &Cluster, config: &Config) -> Result<(Pod, Warnings), String> {
    if let Some(key) = pod
        .annotations()
        .keys()
        .find(|key| key.starts_with(keys::TESSERA_PREFIX))
    {
        return Err(format!(
            "annotation {key} is written by Tessera alone; remove it"
        ));
    }
    let demand =
        Demand::read(&pods::request(&pod), config).map_err(|refusal| refusal.to_string())?;
    let mut warnings = Warnings::new();
    let spec = pod.spec.get_or_insert_default();
    let Some(demand) = demand else {
        for container in containers(spec) {
            if asks_past_us(container) {
                warnings.push(overridden(container));
                hide_devices(container);
            }
        }
        return Ok((pod, warnings));
    };
    refuse_bypasses(spec)?;
    for container in containers(spec) {
        if asks_past_us(container) {
            warnings.push(overridden(container));
        }
        hide_devices(container);
        let asked = demand
            .containers
            .iter()
            .find(|asked| asked.name == container.name);
        if let Some(asked) = asked {
            fill_in_limits(container, asked.count, config);
        }
    }
    if let Some(other) = spec
        .scheduler_name
        .as_deref()
        .filter(|name| !["", DEFAULT_SCHEDULER, keys::SCHEDULER].contains(name))
    {
        warnings.push(format!(
            "schedulerName {other:?} is not {}: the containers wait until that scheduler gives the pod a Tessera claim",
            keys::SCHEDULER
        ));
        return Ok((pod, warnings));
    }
    spec.scheduler_name = Some(keys::SCHEDULER.to_owned());
    let by_user = demand.mode.is_some();
    let choice = plugin::hint::best_node(cluster, &demand, config);
    let annotations = pod.annotations_mut();
    if by_user {
        annotations.insert(keys::VGPU_MODE_BY.to_owned(), "user".to_owned());
    }
    // Nothing fits now: the pod waits, and its binding brings the mode.
    if let Some(choice) = choice {
        annotations.insert(keys::NODE.to_owned(), choice.node);
        if !by_user {
            annotations.insert(keys::VGPU_MODE.to_owned(), choice.plan.mode.to_string());
            annotations.insert(keys::VGPU_MODE_BY.to_owned(), "tessera".to_owned());
        }
    }
    Ok((pod, warnings))
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    let inits = spec.init_containers.iter_mut().flatten();
    inits.chain(&mut spec.containers)
}

/// What no claim could keep to its own devices.
fn refuse_bypasses(spec: &mut PodSpec) -> Result<(), String> {
    if let Some(node) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Err(format!(
            "spec.nodeName {node:?} passes by the scheduler, so the pod would get no GPU; \
             write nodeSelector kubernetes.io/hostname: {node} instead"
        ));
    }
    let privileged = |container: &Container| {
        let context = container.security_context.as_ref();
        context.and_then(|context| context.privileged) == Some(true)
    };
    match containers(spec).find(|container| privileged(container)) {
        Some(container) => Err(format!(
            "container {:?} is privileged and would see every GPU of its node; \
             remove securityContext.privileged, or the GPU resources from the pod",
            container.name
        )),
        None => Ok(()),
    }
}

/// Whether the container asks NVIDIA's runtime for devices by itself.
fn asks_past_us(container: &Container) -> bool {
    container.env.iter().flatten().any(|variable| {
        variable.name == VISIBLE_DEVICES
            && !(variable.value_from.is_none()
                && matches!(variable.value.as_deref(), None | Some("" | "none" | VOID)))
    })
}

fn overridden(container: &Container) -> String {
    format!(
        "container {:?}: {VISIBLE_DEVICES} is set to {VOID:?}: a container sees the devices of its limits alone",
        container.name
    )
}

fn hide_devices(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    env.retain(|variable| variable.name != VISIBLE_DEVICES);
    env.push(EnvVar {
        name: VISIBLE_DEVICES.to_owned(),
        value: Some(VOID.to_owned()),
        value_from: None,
    });
}

/// Limits for what is only requested, and the count where only memory or compute is asked for: kubelet counts it.
fn fill_in_limits(container: &mut Container, count: u32, config: &Config) {
    let resources = container.resources.get_or_insert_default();
    let requests: BTreeMap<_, _> = resources
        .requests
        .iter()
        .flatten()
        .filter(|(name, _)| config.resource_names().contains(&name.as_str()))
        .map(|(name, quantity)| (name.clone(), quantity.clone()))
        .collect();
    let limits = resources.limits.get_or_insert_default();
    for (name, quantity) in requests {
        limits.entry(name).or_insert(quantity);
    }
    limits
        .entry(config.resource_count_name.clone())
        .or_insert_with(|| Quantity(count.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode};
    use serde_json::{Value, json};

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let node = |name, mode| fixtures::node(name, &fixtures::a100_80gb(), 1, mode);
        cluster.apply_node("mig", node("mig", VgpuMode::Mig));
        cluster.apply_node("soft", node("soft", VgpuMode::HamiCore));
        cluster
    }

    /// A pod with one container that has these limits; `more` is merged into it.
    fn pod(limits: &Value, more: &Value) -> Pod {
        let mut pod = json!({ "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": limits } }] } });
        json_patch::merge(&mut pod, more);
        serde_json::from_value(pod).unwrap()
    }

    fn done(limits: &Value, more: &Value) -> (Value, Warnings) {
        let (pod, warnings) = mutate(pod(limits, more), &cluster(), &Config::default()).unwrap();
        (serde_json::to_value(pod).unwrap(), warnings)
    }

    fn refused(limits: &Value, more: &Value) -> String {
        mutate(pod(limits, more), &cluster(), &Config::default()).unwrap_err()
    }

    const GPU: &str = "nvidia.com/gpu";
    const MEM: &str = "nvidia.com/gpumem";

    #[test]
    fn a_pod_without_a_mode_gets_one_and_a_node() {
        let (pod, warnings) = done(&json!({ GPU: "1", MEM: "9000" }), &json!({}));
        assert_eq!(
            pod["metadata"]["annotations"],
            json!({ "nvidia.com/vgpu-mode": "mig", "tessera.dev/node": "mig",
                "tessera.dev/vgpu-mode-by": "tessera" })
        );
        assert_eq!(pod["spec"]["schedulerName"], "tessera-scheduler");
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"],
            json!({ GPU: "1", MEM: "9000" })
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_mode_of_the_user_stays() {
        let mode =
            json!({ "metadata": { "annotations": { "nvidia.com/vgpu-mode": "hami-core" } } });
        let (pod, _) = done(&json!({ GPU: "1", MEM: "9000" }), &mode);
        assert_eq!(
            pod["metadata"]["annotations"],
            json!({ "nvidia.com/vgpu-mode": "hami-core", "tessera.dev/node": "soft",
                "tessera.dev/vgpu-mode-by": "user" })
        );
    }

    #[test]
    fn what_nothing_can_take_now_is_admitted_without_a_hint() {
        let (pod, _) = done(&json!({ GPU: "1", MEM: "900000" }), &json!({}));
        assert!(
            pod["metadata"]
                .get("annotations")
                .is_none_or(Value::is_null)
                || pod["metadata"]["annotations"] == json!({})
        );
        assert_eq!(pod["spec"]["schedulerName"], "tessera-scheduler");
    }

    #[test]
    fn limits_are_completed_and_what_is_written_stays_byte_for_byte() {
        let (pod, _) = done(&json!({ MEM: "8k" }), &json!({}));
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"],
            json!({ MEM: "8k", GPU: "1" })
        );
        let requests = json!({ "spec": { "containers": [{ "name": "c",
            "resources": { "requests": { GPU: "2", MEM: "500", "cpu": "1" } } }] } });
        let (pod, _) = done(&json!({}), &requests);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"],
            json!({ GPU: "2", MEM: "500" })
        );
    }

    #[test]
    fn no_container_of_a_gpu_pod_sees_devices_by_the_variable() {
        let two = json!({ "spec": {
            "initContainers": [{ "name": "i" }],
            "containers": [
                { "name": "c", "env": [{ "name": "A", "value": "1" }, { "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }],
                    "resources": { "limits": { GPU: "1" } } },
                { "name": "d" }] } });
        let (pod, warnings) = done(&json!({}), &two);
        let void = json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": "void" });
        assert_eq!(pod["spec"]["initContainers"][0]["env"], json!([void]));
        assert_eq!(
            pod["spec"]["containers"][0]["env"],
            json!([{ "name": "A", "value": "1" }, void])
        );
        assert_eq!(pod["spec"]["containers"][1]["env"], json!([void]));
        assert_eq!(
            warnings,
            [
                "container \"c\": NVIDIA_VISIBLE_DEVICES is set to \"void\": a container sees the devices of its limits alone"
            ]
        );
    }

    #[test]
    fn a_pod_that_asks_for_nothing_loses_the_back_door_and_nothing_else() {
        let env =
            |value: Value| json!({ "spec": { "containers": [{ "name": "c", "env": [value] }] } });
        let all = json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" });
        let (mutated, warnings) = done(&json!({}), &env(all));
        let expected = pod(
            &json!({}),
            &env(json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": "void" })),
        );
        assert_eq!(mutated, serde_json::to_value(expected).unwrap());
        assert_eq!(warnings.len(), 1);
        for harmless in ["void", "none", ""] {
            let same = env(json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": harmless }));
            let (mutated, warnings) = done(&json!({}), &same);
            assert_eq!(
                mutated,
                serde_json::to_value(pod(&json!({}), &same)).unwrap()
            );
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn another_scheduler_is_the_users_affair() {
        let (pod, warnings) = done(
            &json!({ GPU: "1" }),
            &json!({ "spec": { "schedulerName": "volcano" } }),
        );
        assert_eq!(pod["spec"]["schedulerName"], "volcano");
        assert!(pod["metadata"].get("annotations").is_none());
        assert!(
            warnings[0].starts_with("schedulerName \"volcano\" is not tessera-scheduler"),
            "{warnings:?}"
        );
    }

    #[test]
    fn refusals_say_what_to_write() {
        let gpu = json!({ GPU: "1" });
        let noted =
            |key: &str, value: &str| json!({ "metadata": { "annotations": { key: value } } });
        for (limits, more, sentence) in [
            (
                json!({ GPU: "1", MEM: "8Gi" }),
                json!({}),
                "container \"c\": nvidia.com/gpumem: \"8Gi\" has a unit, but this resource counts MiB already; write 8192",
            ),
            (
                gpu.clone(),
                noted("nvidia.com/vgpu-mode", "migg"),
                "annotation nvidia.com/vgpu-mode: \"migg\" is no vGPU mode; write \"mig\" or \"hami-core\"",
            ),
            (
                json!({ GPU: "1", "nvidia.com/gpumem-percentage": "150" }),
                json!({}),
                "container \"c\": nvidia.com/gpumem-percentage: \"150\" is more than 100 percent; write a whole number from 0 to 100",
            ),
            (
                gpu.clone(),
                noted("tessera.dev/claim", "{}"),
                "annotation tessera.dev/claim is written by Tessera alone; remove it",
            ),
            (
                gpu.clone(),
                json!({ "spec": { "nodeName": "n7" } }),
                "spec.nodeName \"n7\" passes by the scheduler, so the pod would get no GPU; write nodeSelector kubernetes.io/hostname: n7 instead",
            ),
            (
                gpu,
                json!({ "spec": { "initContainers": [{ "name": "i", "securityContext": { "privileged": true } }] } }),
                "container \"i\" is privileged and would see every GPU of its node; remove securityContext.privileged, or the GPU resources from the pod",
            ),
        ] {
            assert_eq!(refused(&limits, &more), sentence);
        }
    }
}
