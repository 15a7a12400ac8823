//! How admission changes a pod. Pure.

use std::collections::BTreeMap;

use daemon::{node_affinity::exclude_label, pods};
use domain::{config::Config, demand::Demand, keys, mode::ChosenBy};
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;
use placement::cluster::Cluster;

use crate::{
    denial::{Denial, check_annotations, check_node_name},
    gpu_nodes::{GpuNodes, Supplier},
    visible_devices::{asks_for_devices, hide_devices, warning},
};

/// Name that the API server fills in where the pod's author names no scheduler.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// What a pod is admitted by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Tessera's GPUs and who has them.
    pub(crate) cluster: &'a Cluster,
    /// The nodes with GPUs, also those that Tessera does not manage.
    pub(crate) gpu_nodes: &'a GpuNodes,
    /// The settings.
    pub(crate) config: &'a Config,
}

/// Warnings for the pod's author, printed by kubectl.
pub(crate) type Warnings = Vec<String>;

/// Prepares a GPU pod for Tessera: scheduler, mode and node (a hint), device counts, and no devices but the claimed ones.
///
/// It reserves nothing, so a dry run gives the same answer. A pod without GPU resources only loses its
/// own `NVIDIA_VISIBLE_DEVICES`.
pub(crate) fn mutate(mut pod: Pod, view: View<'_>) -> Result<(Pod, Warnings), Denial> {
    check_annotations(&pod)?;
    let config = view.config;
    let request = pods::request(&pod);
    let demand = Demand::read(&request, config)?;
    let mut warnings: Warnings = label_warning(&pod).into_iter().collect();
    let spec = pod.spec.get_or_insert_default();
    let Some(demand) = demand else {
        for container in containers(spec) {
            if asks_for_devices(container) {
                warnings.push(warning(container));
                hide_devices(container);
            }
        }
        return Ok((pod, warnings));
    };
    if request.is_count_only(config) && leave_to_others(spec, view, &mut warnings) {
        return Ok((pod, warnings));
    }
    check_node_name(spec)?;
    for container in containers(spec) {
        if asks_for_devices(container) {
            warnings.push(warning(container));
        }
        // In every container of a GPU pod: the image may set the variable, too.
        hide_devices(container);
        let mut asked = demand.containers.iter();
        if let Some(asked) = asked.find(|asked| asked.name == container.name) {
            fill_in_limits(container, asked.count, config);
        }
    }
    if let Some(other) = other_scheduler(spec) {
        warnings.push(format!(
            "schedulerName {other:?} is not {}: the containers do not start until that scheduler binds the pod with a Tessera claim",
            keys::SCHEDULER
        ));
        return Ok((pod, warnings));
    }
    spec.scheduler_name = Some(keys::SCHEDULER.to_owned());
    write_hint(&mut pod, &demand, view);
    Ok((pod, warnings))
}

/// Leaves a pod to the device plugin of other GPU nodes than Tessera's, where the cluster has such nodes that will do;
/// keeps it away from Tessera's then.
fn leave_to_others(spec: &mut PodSpec, view: View<'_>, warnings: &mut Warnings) -> bool {
    if spec.scheduler_name.as_deref() == Some(keys::SCHEDULER) {
        return false;
    }
    let has_gpu_node = |name: &str| view.cluster.node(name).is_some();
    match view.gpu_nodes.supplier(spec, has_gpu_node) {
        Supplier::Tessera => false,
        Supplier::Other => true,
        Supplier::OtherIfFenced => {
            exclude_label(spec, keys::VGPU_MODE);
            let [count, _, percent, _] = view.config.resource_names();
            warnings.push(format!(
                "{count} alone is left to the GPU nodes that Tessera does not manage; for a GPU managed by Tessera \
                 add the limit {percent}: 100 or the annotation {}",
                keys::VGPU_MODE
            ));
            true
        }
    }
}

/// A warning where the pod has the label by which `HAMi` leaves a pod alone: any tenant could set it.
fn label_warning(pod: &Pod) -> Option<String> {
    let value = pod.labels().get(keys::HAMI_WEBHOOK)?;
    (value == keys::IGNORE).then(|| {
        format!(
            "label {}={value} of a pod has no effect; an admin may label its namespace {}={value}",
            keys::HAMI_WEBHOOK,
            keys::WEBHOOK
        )
    })
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    let inits = spec.init_containers.iter_mut().flatten();
    inits.chain(&mut spec.containers)
}

/// A scheduler that the pod's author chose instead of Tessera's.
fn other_scheduler(spec: &PodSpec) -> Option<&str> {
    let name = spec.scheduler_name.as_deref()?;
    (!["", DEFAULT_SCHEDULER, keys::SCHEDULER].contains(&name)).then_some(name)
}

/// Completes limits: what is only requested, and the count where only memory or compute is asked for, since kubelet
/// allocates by the count.
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

/// Writes the node and the mode that the plugin would choose now, and who chose the mode.
fn write_hint(pod: &mut Pod, demand: &Demand, view: View<'_>) {
    let choice = plugin::hint::best_node(view.cluster, demand, view.config);
    let annotations = pod.annotations_mut();
    let mut write = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    if demand.mode.is_some() {
        write(keys::VGPU_MODE_BY, ChosenBy::User.to_string());
    }
    // Where nothing fits now, the pod waits, and its binding writes the mode.
    if let Some(choice) = choice {
        write(keys::NODE, choice.node);
        if demand.mode.is_none() {
            write(keys::VGPU_MODE, choice.plan.mode.to_string());
            write(keys::VGPU_MODE_BY, ChosenBy::Tessera.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_nodes;
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
        done_beside(&GpuNodes::default(), limits, more)
    }

    /// In a cluster with these nodes.
    fn done_beside(gpu_nodes: &GpuNodes, limits: &Value, more: &Value) -> (Value, Warnings) {
        let (cluster, config) = (cluster(), Config::default());
        let view = View {
            cluster: &cluster,
            gpu_nodes,
            config: &config,
        };
        let (pod, warnings) = mutate(pod(limits, more), view).unwrap();
        (serde_json::to_value(pod).unwrap(), warnings)
    }

    fn denied(limits: &Value, more: &Value) -> String {
        let view = View {
            cluster: &cluster(),
            gpu_nodes: &GpuNodes::default(),
            config: &Config::default(),
        };
        let result = mutate(pod(limits, more), view);
        result.unwrap_err().to_string()
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
                "container \"c\": NVIDIA_VISIBLE_DEVICES was set to \"void\": a container only sees the devices in its limits"
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

    /// Issue 12, A11.
    #[test]
    fn a_pod_of_gpus_alone_is_left_to_other_gpu_nodes() {
        let label = json!({ "nvidia.com/vgpu-mode": "mig" });
        let nodes = gpu_nodes::tests::nodes(&[
            ("mig", label, Some("20")),
            ("l4", json!({ "gpu": "l4" }), Some("8")),
        ]);
        let all = json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }]);
        let pinned = json!({ "spec": { "nodeSelector": { "gpu": "l4" },
            "containers": [{ "name": "c", "env": all, "resources": { "limits": { GPU: "1" } } }] } });
        let (left, warnings) = done_beside(&nodes, &json!({}), &pinned);
        let untouched = serde_json::to_value(pod(&json!({}), &pinned)).unwrap();
        assert_eq!((left, warnings), (untouched, vec![]));

        let (left, warnings) = done_beside(&nodes, &json!({ GPU: "1" }), &json!({}));
        let terms = json!([{ "matchExpressions": [{ "key": "nvidia.com/vgpu-mode", "operator": "DoesNotExist" }] }]);
        let mut fenced = serde_json::to_value(pod(&json!({ GPU: "1" }), &json!({}))).unwrap();
        fenced["spec"]["affinity"] = json!({ "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
        assert_eq!(left, fenced);
        assert_eq!(
            warnings,
            [
                "nvidia.com/gpu alone is left to the GPU nodes that Tessera does not manage; for a GPU managed by Tessera add the limit nvidia.com/gpumem-percentage: 100 or the annotation nvidia.com/vgpu-mode"
            ]
        );

        for (limits, more) in [
            (
                json!({ GPU: "1", "nvidia.com/gpumem-percentage": "100" }),
                json!({}),
            ),
            (
                json!({ GPU: "1" }),
                json!({ "metadata": { "annotations": { "nvidia.com/vgpu-mode": "mig" } } }),
            ),
            (
                json!({ GPU: "1" }),
                json!({ "spec": { "schedulerName": "tessera-scheduler" } }),
            ),
        ] {
            let (pod, _) = done_beside(&nodes, &limits, &more);
            assert_eq!(
                pod["spec"]["schedulerName"], "tessera-scheduler",
                "{limits} {more}"
            );
        }
    }

    /// Issue 12, A12: a tenant could set it.
    #[test]
    fn a_label_of_a_pod_exempts_nothing_and_a_warning_says_so() {
        let ignored = json!({ "metadata": { "labels": { "hami.io/webhook": "ignore" } } });
        let (pod, warnings) = done(&json!({ GPU: "1", MEM: "9000" }), &ignored);
        assert_eq!(pod["spec"]["schedulerName"], "tessera-scheduler");
        assert_eq!(
            warnings,
            [
                "label hami.io/webhook=ignore of a pod has no effect; an admin may label its namespace tessera.dev/webhook=ignore"
            ]
        );
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
    fn denials_say_what_to_write() {
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
                "annotation nvidia.com/vgpu-mode: \"migg\" is not a vGPU mode; write \"mig\" or \"hami-core\"",
            ),
            (
                json!({ GPU: "1", "nvidia.com/gpumem-percentage": "150" }),
                json!({}),
                "container \"c\": nvidia.com/gpumem-percentage: \"150\" is more than 100 percent; write a whole number from 0 to 100",
            ),
            (
                gpu.clone(),
                noted("tessera.dev/claim", "{}"),
                "annotation tessera.dev/claim is reserved for Tessera; remove it",
            ),
            (
                gpu,
                json!({ "spec": { "nodeName": "n7" } }),
                "spec.nodeName \"n7\" bypasses the scheduler, so the pod would get no GPU; use nodeSelector kubernetes.io/hostname: n7 instead",
            ),
        ] {
            assert_eq!(denied(&limits, &more), sentence);
        }
    }
}
