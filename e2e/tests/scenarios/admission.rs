//! What is refused, in which words.

use anyhow::{Context, bail, ensure};
use daemon::gpu_node::GpuNode;
use e2e::{cluster::Cluster, wait::until};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    namespaces::Namespace,
    specs::{container, gpus, pod},
    world::{REAL, WAIT_TIMEOUT, World},
};

pub(crate) async fn nonsense_is_refused_in_one_sentence(world: World) -> anyhow::Result<()> {
    let one = |resource: &str, quantity: &str| json!({ "nvidia.com/gpu": "1", resource: quantity });
    let mut migg = pod("migg", None, &gpus(1, 8000));
    migg["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "migg" });
    for (wanted, sentence) in [
        (
            pod("unit", None, &one("nvidia.com/gpumem", "8Gi")),
            "denied the request: container \"main\": nvidia.com/gpumem: \"8Gi\" has a unit, but this resource counts MiB already; write 8192",
        ),
        (
            pod("percent", None, &one("nvidia.com/gpumem-percentage", "150")),
            "denied the request: container \"main\": nvidia.com/gpumem-percentage: \"150\" is more than 100 percent; write a whole number from 0 to 100",
        ),
        (
            migg,
            "denied the request: annotation nvidia.com/vgpu-mode: \"migg\" is not a vGPU mode; write \"mig\" or \"hami-core\"",
        ),
    ] {
        match world.create(&wanted).await {
            Ok(_) => bail!("created, but should be refused: {sentence}"),
            Err(error) => {
                let words = format!("{error:#}");
                ensure!(words.contains(sentence), "{words}");
            }
        }
    }
    // Only the plugin knows the largest GPU of the cluster; it reports it at once, in an event.
    world.create(&pod("huge", None, &gpus(1, 900_000))).await?;
    let event = world
        .event(
            "huge",
            &["no GPU has 900000 MiB for one device, the largest has "],
        )
        .await?;
    eprintln!("{event}");
    Ok(())
}

pub(crate) async fn while_the_webhook_is_away_pods_without_gpu_are_created_and_others_refused(
    world: World,
) -> anyhow::Result<()> {
    let processes = &world.tessera.cluster.processes;
    processes.crash("webhook").await?;
    let plain = world
        .create_and_run(&pod("plain", Some(REAL), &json!({})))
        .await;
    let refused = world.create(&pod("gpu", None, &gpus(1, 8000))).await;
    processes.start_again("webhook")?;
    plain?;
    ensure!(refused.is_err(), "failurePolicy is Fail");
    world.tessera.webhook_is_ready().await?;
    world
        .create_and_run(&pod("gpu", Some(REAL), &gpus(1, 8000)))
        .await?;
    Ok(())
}

pub(crate) async fn annotations_of_tessera_are_written_by_tessera_alone(
    world: World,
) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    let mut forged = pod("forged", None, &gpus(1, 8000));
    for limits in [gpus(1, 8000), json!({})] {
        forged["spec"]["containers"][0]["resources"]["limits"] = limits;
        forged["metadata"]["annotations"] = json!({ "tessera.dev/claim": "{}" });
        let error = world
            .create(&forged)
            .await
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        let sentence = "annotation tessera.dev/claim is reserved for Tessera; remove it";
        ensure!(error.contains(sentence), "{error}");
    }
    world
        .create_and_run(&pod("honest", Some(REAL), &gpus(1, 8000)))
        .await?;
    let annotate = [
        "annotate",
        "--overwrite",
        "pod",
        "honest",
        "tessera.dev/claim={}",
    ];
    let error = cluster
        .kubectl(&annotate)
        .await
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    ensure!(error.contains("are reserved for Tessera"), "{error}");
    cluster
        .kubectl(&["annotate", "pod", "honest", "note=mine"])
        .await?;
    an_agent_writes_its_own_node_alone(cluster).await?;
    the_scheduler_writes_one_annotation(cluster).await
}

async fn an_agent_writes_its_own_node_alone(cluster: &Cluster) -> anyhow::Result<()> {
    let agent = cluster.client_as("tessera-nodeagent-real").await?;
    let nodes: Api<GpuNode> = Api::all(agent);
    let same: Patch<()> = Patch::Json(serde_json::from_value(json!([]))?);
    nodes
        .patch_status(REAL, &PatchParams::default(), &same)
        .await?;
    let other = nodes
        .patch_status("hollow-h100", &PatchParams::default(), &same)
        .await;
    let error = other
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(
        error.contains("an agent may write only the GpuNode of its own node"),
        "{error}"
    );
    Ok(())
}

async fn the_scheduler_writes_one_annotation(cluster: &Cluster) -> anyhow::Result<()> {
    let scheduler = cluster.client_as("tessera-scheduler").await?;
    let nodes: Api<Node> = Api::all(scheduler);
    let annotate =
        |key: &str| Patch::Merge(json!({ "metadata": { "annotations": { key: "now" } } }));
    nodes
        .patch(
            REAL,
            &PatchParams::default(),
            &annotate("tessera.dev/freed"),
        )
        .await?;
    let other = nodes
        .patch(REAL, &PatchParams::default(), &annotate("other"))
        .await;
    let error = other
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(
        error.contains("may change only the annotation tessera.dev/freed of a node"),
        "{error}"
    );
    Ok(())
}

/// Issue 12, B17 and attack 9: the legacy resource `bindings` is a binding as well.
pub(crate) async fn only_the_scheduler_binds_with_a_claim(world: World) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    // It may create every kind of binding, but is not tessera-scheduler.
    let stranger = cluster.client_as("scheduler").await?;
    let ours = cluster.client_as("tessera-scheduler").await?;
    let mut waiting = pod("waiting", None, &json!({}));
    waiting["spec"]["schedulerName"] = json!("nobody");
    world.create(&waiting).await?;
    for path in ["bindings", "pods/waiting/binding"] {
        for annotation in ["tessera.dev/claim", "nvidia.com/vgpu-mode"] {
            let annotations = json!({ annotation: "mig" });
            let error = bind(&stranger, path, "waiting", &annotations).await;
            let error = error.err().map(|e| e.to_string()).unwrap_or_default();
            ensure!(
                error.contains("only tessera-scheduler may bind pods with annotations"),
                "{path} with {annotation}: {error:?}"
            );
        }
    }
    let node = json!({ "tessera.dev/node": REAL });
    bind(&ours, "bindings", "waiting", &node).await?;
    let bound = world.runs("waiting").await?;
    ensure!(bound.metadata.annotations.unwrap_or_default()["tessera.dev/node"] == REAL);
    // Bindings without annotations are everybody's who has the right.
    waiting["metadata"]["name"] = json!("plain");
    world.create(&waiting).await?;
    bind(&stranger, "bindings", "plain", &json!({})).await?;
    world.runs("plain").await?;
    Ok(())
}

/// Issue 12, B17: the mode of a pod that has its GPU is a fact; that of a waiting pod may change.
pub(crate) async fn the_mode_of_a_running_pod_cannot_be_changed(
    world: World,
) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    world
        .create_and_run(&pod("runs", Some(REAL), &gpus(1, 8000)))
        .await?;
    for change in ["nvidia.com/vgpu-mode=hami-core", "nvidia.com/vgpu-mode-"] {
        let annotate = ["annotate", "--overwrite", "pod", "runs", change];
        let error = cluster.kubectl(&annotate).await;
        let error = error.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(
            error.contains("nvidia.com/vgpu-mode cannot be changed once the pod has a node"),
            "{change}: {error:?}"
        );
    }
    cluster
        .kubectl(&["annotate", "pod", "runs", "note=mine"])
        .await?;
    world.create(&pod("waits", None, &gpus(1, 900_000))).await?;
    let mode = "nvidia.com/vgpu-mode=hami-core";
    cluster
        .kubectl(&["annotate", "--overwrite", "pod", "waits", mode])
        .await?;
    Ok(())
}

/// Issue 12, A12: `cases/nvidia-own-pods.yaml`, with and without the webhook; a label on a pod exempts nothing.
pub(crate) async fn pods_of_exempt_namespaces_are_left_alone(world: World) -> anyhow::Result<()> {
    let sees_all = |name: &str| {
        let mut pod = pod(name, Some(REAL), &json!({}));
        pod["metadata"]["labels"] = json!({ "hami.io/webhook": "ignore" });
        pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
        pod["spec"]["containers"][0]["env"] =
            json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }]);
        pod
    };
    let namespaces = [
        Namespace::new("gpu-operator", &json!({})),
        Namespace::new("nvidia", &json!({ "tessera.dev/webhook": "ignore" })),
        Namespace::new("hami", &json!({ "hami.io/webhook": "ignore" })),
    ];
    for namespace in &namespaces {
        namespace.create(&world).await?;
    }
    let processes = &world.tessera.cluster.processes;
    let mut results = vec![];
    for name in ["served", "away"] {
        if name == "away" {
            processes.crash("webhook").await?;
        }
        for namespace in ["gpu-operator", "nvidia", "hami", "kube-system"] {
            let created = world.dry_run_in(namespace, &sees_all(name)).await;
            results.push((namespace, name, created.map(|pod| visible_devices(&pod))));
        }
    }
    processes.start_again("webhook")?;
    world.tessera.webhook_is_ready().await?;
    for namespace in &namespaces {
        namespace.delete(&world).await?;
    }
    for (namespace, name, devices) in results {
        let devices = devices.with_context(|| format!("{namespace}/{name}"))?;
        ensure!(devices == "all", "{namespace}/{name}: {devices}");
    }
    let ordinary = world.dry_run_in("default", &sees_all("ordinary")).await?;
    ensure!(visible_devices(&ordinary) == "void");
    Ok(())
}

/// Issue 12, A12: an admin allows privileged GPU pods by a label of the namespace; GPU pods in kube-system are served.
pub(crate) async fn privileged_gpu_pods_run_where_the_admin_allows_them(
    world: World,
) -> anyhow::Result<()> {
    let mut privileged = pod("privileged", Some(REAL), &gpus(1, 8000));
    privileged["spec"]["initContainers"] = json!([container("init", &json!({}))]);
    privileged["spec"]["initContainers"][0]["command"] = json!(["true"]);
    privileged["spec"]["initContainers"][0]["securityContext"] = json!({ "privileged": true });
    let sentence = "container \"init\" is privileged and would see every GPU of its node";
    for namespace in ["default", "kube-system"] {
        let error = world.create_in(namespace, &privileged).await;
        let error = error.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(error.contains(sentence), "{namespace}: {error:?}");
    }
    let allowed = Namespace::new(
        "allowed",
        &json!({ "tessera.dev/allow-privileged": "true" }),
    );
    allowed.create(&world).await?;
    let created = world.create_in("allowed", &privileged).await;
    let served = world
        .create_in("kube-system", &pod("served", Some(REAL), &gpus(1, 8000)))
        .await;
    let ran = Box::pin(async {
        world.runs_in("allowed", &created?.name_any()).await?;
        world.runs_in("kube-system", &served?.name_any()).await
    })
    .await;
    allowed.delete(&world).await?;
    world.delete_in("kube-system", "served").await?;
    let served = ran?;
    ensure!(visible_devices(&served) == "void");
    Ok(())
}

/// Issue 12, attacks 15 and 16: ways to more GPUs than the claim has, as far as admission sees them.
pub(crate) async fn no_annotation_and_no_ephemeral_container_opens_a_back_door(
    world: World,
) -> anyhow::Result<()> {
    for device in ["nvidia.com/gpu=all", "tessera.dev/gpu=0123"] {
        let mut forged = pod("forged", None, &json!({}));
        forged["metadata"]["annotations"] = json!({ "cdi.k8s.io/mine": device });
        let error = world.create(&forged).await;
        let error = error.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(error.contains("may not name GPUs"), "{device}: {error:?}");
    }
    let mut other = pod("other", Some(REAL), &gpus(1, 8000));
    other["metadata"]["annotations"] = json!({ "cdi.k8s.io/mine": "vendor.example/nic=0" });
    world.create(&other).await?;
    let kubectl = [
        "annotate",
        "pod",
        "other",
        "cdi.k8s.io/more=nvidia.com/gpu=0",
    ];
    let error = world.tessera.cluster.kubectl(&kubectl).await;
    let error = error.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains("may not name GPUs"), "{error:?}");
    world.runs("other").await?;
    let variable = json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }]);
    for (field, value, sentence) in [
        ("env", variable, "may not set NVIDIA_VISIBLE_DEVICES"),
        (
            "securityContext",
            json!({ "privileged": true }),
            "container \"debug\" is privileged",
        ),
    ] {
        let error = debug(&world, "other", field, value).await;
        let error = error.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(error.contains(sentence), "{field}: {error:?}");
    }
    let harmless = json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "void" }]);
    debug(&world, "other", "env", harmless).await
}

/// Adds an ephemeral container with this field.
async fn debug(world: &World, pod: &str, field: &str, value: Value) -> anyhow::Result<()> {
    let mut debugger = container("debug", &json!({}));
    debugger["resources"] = json!({});
    debugger[field] = value;
    let patch = json!({ "spec": { "ephemeralContainers": [debugger] } });
    let params = PatchParams::default();
    let pods = world.pods();
    pods.patch_ephemeral_containers(pod, &params, &Patch::Strategic(patch))
        .await?;
    Ok(())
}

/// Issue 12, A11: a node of NVIDIA's own device plugin beside Tessera's.
pub(crate) async fn pods_of_gpus_alone_are_left_to_other_gpu_nodes(
    world: World,
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(world.tessera.cluster.client());
    let node = json!({ "metadata": { "name": "other", "labels": { "gpu": "l4" } } });
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node)?)
        .await?;
    let amounts = json!({ "nvidia.com/gpu": "8", "cpu": "8", "memory": "8Gi", "pods": "20" });
    let ready = json!({ "type": "Ready", "status": "True", "reason": "Test", "message": "",
        "lastHeartbeatTime": jiff::Timestamp::now().to_string(), "lastTransitionTime": jiff::Timestamp::now().to_string() });
    let status =
        json!({ "status": { "capacity": amounts, "allocatable": amounts, "conditions": [ready] } });
    nodes
        .patch_status("other", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    let result = beside_another_device_plugin(&world).await;
    // No kubelet ends them.
    let now = DeleteParams::default().grace_period(0);
    for name in ["anywhere", "pinned"] {
        let _ = world.pods().delete(name, &now).await;
    }
    nodes.delete("other", &DeleteParams::default()).await?;
    result
}

async fn beside_another_device_plugin(world: &World) -> anyhow::Result<()> {
    let one = json!({ "nvidia.com/gpu": "1" });
    let mut pinned = pod("pinned", None, &one);
    pinned["spec"]["nodeSelector"] = json!({ "gpu": "l4" });
    pinned["spec"]["containers"][0]["env"] =
        json!([{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "0" }]);
    until("the webhook to know the node", WAIT_TIMEOUT, async || {
        let pod = world.dry_run_in("default", &pinned).await.ok()?;
        (pod.spec?.scheduler_name? == "default-scheduler").then_some(())
    })
    .await?;
    let pinned = world.create(&pinned).await?;
    ensure!(visible_devices(&pinned) == "0");
    world.create(&pod("anywhere", None, &one)).await?;
    for name in ["pinned", "anywhere"] {
        let bound = until("pods to be bound to the node", WAIT_TIMEOUT, async || {
            let pod = world.pods().get(name).await.ok()?;
            pod.spec?.node_name
        });
        let node = bound.await.context(name)?;
        ensure!(node == "other", "{name} is on {node}");
    }
    // What says more than a number is Tessera's.
    let share = json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "100" });
    world.create_and_run(&pod("ours", None, &share)).await?;
    Ok(())
}

/// The value of `NVIDIA_VISIBLE_DEVICES` in a pod's first container.
fn visible_devices(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.iter());
    let env = containers.into_iter().flatten().take(1);
    env.flat_map(|container| container.env.iter().flatten())
        .find(|variable| variable.name == "NVIDIA_VISIBLE_DEVICES")
        .and_then(|variable| variable.value.clone())
        .unwrap_or_default()
}

/// Binds a pod to the real node, by `bindings` or by the pod's subresource.
async fn bind(client: &Client, path: &str, pod: &str, annotations: &Value) -> anyhow::Result<()> {
    let binding = json!({ "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": pod, "annotations": annotations },
        "target": { "kind": "Node", "name": REAL } });
    let request = http::Request::post(format!("/api/v1/namespaces/default/{path}"))
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(&binding)?)?;
    client.request_text(request).await?;
    Ok(())
}
