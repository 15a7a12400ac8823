//! Unhealthy GPUs, instances that cannot be created, modes that follow the pods.

use std::time::Duration;

use anyhow::{Context, ensure};
use domain::mode::{NodeMode, VgpuMode};
use e2e::{
    cluster::component::Component,
    process::Process,
    tessera::{agent, nodes::GpuNodeSpec},
    wait::until,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use nix::sys::signal::Signal;
use nvml_sim::{
    event::{Event, XID},
    fault::{Action, Control, Rule},
};
use serde_json::json;

use super::{
    specs::{container, gpus, pod},
    world::{REAL, WAIT_TIMEOUT, World},
};

/// The agent gives up a pod after five failures, then the GPU is not offered for a minute.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(80);

/// The GPU of a pod's first MIG device: NVML index and UUID.
async fn gpu_of(world: &World, node: &str, name: &str) -> anyhow::Result<(usize, String)> {
    let pod = world.pods().get(name).await?;
    let claim = daemon::pods::claim(&pod).context("no claim")??;
    let slot = claim.slots().next().context("no MIG device")?.clone();
    let status = world.tessera.gpu_node(node).await?;
    let gpu = status.gpus.iter().find(|gpu| gpu.uuid == slot.gpu);
    let index = gpu.context("not published")?.index;
    Ok((usize::try_from(index)?, slot.gpu))
}

/// Waits until a GPU is published as unhealthy, or as healthy.
async fn is_unhealthy(world: &World, node: &str, uuid: &str, wanted: bool) -> anyhow::Result<()> {
    let what = format!(
        "the GPU to be {}",
        if wanted { "unhealthy" } else { "healthy" }
    );
    until(&what, WAIT_TIMEOUT, async || {
        let status = world.tessera.gpu_node(node).await.ok()?;
        let gpu = status.gpus.iter().find(|gpu| gpu.uuid == uuid)?;
        (gpu.unhealthy.is_some() == wanted).then_some(())
    })
    .await?;
    Ok(())
}

/// Message of a node's condition `GpusUnhealthy`.
async fn unhealthy_message(world: &World, node: &str) -> anyhow::Result<String> {
    let message = world
        .tessera
        .cluster
        .kubectl(&[
            "get",
            "gpunodes",
            node,
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"GpusUnhealthy\")].message}",
        ])
        .await?;
    Ok(message)
}

async fn allocatable(world: &World, node: &str) -> Option<u32> {
    let nodes: Api<Node> = Api::all(world.tessera.cluster.client());
    let status = nodes.get(node).await.ok()?.status?;
    let count = status.allocatable?.get("nvidia.com/gpu")?.0.clone();
    count.parse().ok()
}

pub(crate) async fn a_gpu_with_a_fault_takes_no_pods_until_it_has_recovered(
    world: World,
) -> anyhow::Result<()> {
    let (gpus_of_node, node) = (world.tessera.gpus(REAL), REAL);
    world
        .create_and_run(&pod("before", Some(node), &gpus(1, 40_000)))
        .await?;
    let print = world.fingerprint("before").await?;
    let (index, uuid) = gpu_of(&world, node, "before").await?;
    let xid = |data| Event {
        gpu: index,
        kind: XID,
        data,
        ..Event::default()
    };
    // The fault of an application is reported, and nothing else happens. Issue 5: a later event of the same reason was lost.
    gpus_of_node.raise(xid(31))?;
    world.event("before", &["GpuFault", "XID 31"]).await?;
    // XID 48, and the driver asks for a reset.
    gpus_of_node.with(|state| {
        state.gpus[index].recovery_action = nvml_sim::gpu::RECOVER_BY_RESET;
        state.raise(xid(48));
    })?;
    is_unhealthy(&world, node, &uuid, true).await?;
    world.event("before", &["GpuFault", "XID 48"]).await?;
    until(
        "kubelet to offer the other GPU alone",
        WAIT_TIMEOUT,
        async || (allocatable(&world, node).await? == 10).then_some(()),
    )
    .await?;
    let described = unhealthy_message(&world, node).await?;
    ensure!(described.contains("XID 48"), "{described}");
    // The other GPU is used; the unhealthy one is not, although half of it is free.
    for name in ["other", "another"] {
        world
            .create_and_run(&pod(name, Some(node), &gpus(1, 40_000)))
            .await?;
        ensure!(gpu_of(&world, node, name).await?.1 != uuid, "{name}");
    }
    world
        .create(&pod("waits", Some(node), &gpus(1, 40_000)))
        .await?;
    world.event("waits", &["FailedScheduling"]).await?;
    ensure!(
        world.fingerprint("before").await? == print,
        "the running pod was disturbed"
    );
    // Once idle it is reset and offered again, and the waiting pod runs.
    world.delete("before").await?;
    is_unhealthy(&world, node, &uuid, false).await?;
    world.runs("waits").await?;
    ensure!(gpu_of(&world, node, "waits").await?.1 == uuid);
    Ok(())
}

pub(crate) async fn a_pod_whose_instance_cannot_be_made_is_made_anew_elsewhere(
    world: World,
) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(world.tessera.cluster.client());
    let result = recreated(&world, &deployments).await;
    deployments
        .delete("recreated", &DeleteParams::default())
        .await?;
    for node in MIG_NODES {
        world.tessera.gpus(node).control(None)?;
    }
    result?;
    // The GPU is offered again after a while.
    until("the GPU to be offered again", GIVE_UP_TIMEOUT, async || {
        for node in MIG_NODES {
            let status = world.tessera.gpu_node(node).await.ok()?;
            if status.gpus.iter().any(|gpu| gpu.unhealthy.is_some()) {
                return None;
            }
        }
        Some(())
    })
    .await?;
    Ok(())
}

/// Nodes with MIG GPUs.
const MIG_NODES: [&str; 2] = [REAL, "hollow-h100"];

/// A deployment of one MIG instance.
fn deployment() -> anyhow::Result<Deployment> {
    let labels = json!({ "app": "recreated" });
    let container = container("main", &gpus(1, 8_000));
    Ok(serde_json::from_value(json!({
        "metadata": { "name": "recreated" },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels, "annotations": { "nvidia.com/vgpu-mode": "mig" } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] } } } }))?)
}

async fn recreated(world: &World, deployments: &Api<Deployment>) -> anyhow::Result<()> {
    let fail = |gpu: Option<usize>| Control {
        rules: vec![Rule {
            call: "nvmlDeviceCreateGpuInstanceWithPlacement".to_owned(),
            gpu,
            nth: None,
            times: None,
            action: Action::Code(999),
        }],
        ..Control::default()
    };
    for node in MIG_NODES {
        world.tessera.gpus(node).control(Some(&fail(None)))?;
    }
    let deployment = deployment()?;
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;
    let only = ListParams::default().labels("app=recreated");
    let pods = world.pods();
    let first: Pod = until("the pod to be bound", WAIT_TIMEOUT, async || {
        let all = pods.list(&only).await.ok()?;
        all.into_iter()
            .find(|pod| daemon::pods::claim(pod).is_some())
    })
    .await?;
    let (name, node) = (
        first.name_any(),
        daemon::pods::node(&first).unwrap_or_default(),
    );
    let (index, uuid) = gpu_of(world, node, &name).await?;
    // Only that GPU fails from now on.
    for other in MIG_NODES {
        let only = (other == node).then(|| fail(Some(index)));
        world.tessera.gpus(other).control(only.as_ref())?;
    }
    let failed = until("the pod to be given up", GIVE_UP_TIMEOUT, async || {
        let status = pods.get(&name).await.ok()?.status?;
        (status.phase.as_deref() == Some("Failed")).then_some(status)
    })
    .await
    .with_context(|| name.clone())?;
    ensure!(
        failed.reason.as_deref() == Some("InstanceCreationFailed"),
        "{failed:?}"
    );
    let message = failed.message.unwrap_or_default();
    ensure!(message.contains("cannot create 1g.10gb"), "{message}");
    let second = until("another pod to run", WAIT_TIMEOUT, async || {
        let all = pods.list(&only).await.ok()?;
        let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
        let runs = |pod: &Pod| phase(pod).as_deref() == Some("Running");
        all.into_iter().find(runs)
    })
    .await?;
    let claim = daemon::pods::claim(&second).context("no claim")??;
    ensure!(claim.devices().all(|device| device.gpu() != uuid));
    Ok(())
}

pub(crate) async fn an_idle_gpu_changes_its_mode_for_a_pod_that_fits_nowhere_else(
    world: World,
) -> anyhow::Result<()> {
    const AUTO: &str = "auto-h100";
    let spec = GpuNodeSpec::new(AUTO, "h100-80gb", 1, VgpuMode::HamiCore);
    world.tessera.add_hollow_nodes(&[spec]).await?;
    world.label(AUTO, NodeMode::Auto).await?;
    until("the GPU to work by demand", WAIT_TIMEOUT, async || {
        let status = world.tessera.gpu_node(AUTO).await.ok()?;
        status.gpus.first()?.auto_mode.then_some(())
    })
    .await?;
    let of = |name: &str, mode: VgpuMode| {
        let mut pod = pod(name, Some(AUTO), &gpus(1, 8_000));
        pod["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": mode });
        pod
    };
    world
        .create_and_run(&of("share", VgpuMode::HamiCore))
        .await?;
    world.works_as(AUTO, VgpuMode::HamiCore).await?;
    // While a share is on it, it stays as it is.
    world.create(&of("instance", VgpuMode::Mig)).await?;
    world.event("instance", &["no GPU in mode mig"]).await?;
    world.delete("share").await?;
    world.runs("instance").await?;
    world.works_as(AUTO, VgpuMode::Mig).await?;
    world.delete("instance").await?;
    world
        .create_and_run(&of("again", VgpuMode::HamiCore))
        .await?;
    world.works_as(AUTO, VgpuMode::HamiCore).await
}

/// The processes of a pod with this argument, by its UID in their control groups.
fn processes(uid: &str, argument: &str) -> Vec<Process> {
    let is_of = |process: &Process| {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
        groups.is_ok_and(|text| text.contains(uid))
            && process.command_line().iter().any(|word| word == argument)
    };
    Process::all().into_iter().filter(is_of).collect()
}

pub(crate) async fn a_container_starts_again_although_a_fresh_agent_has_no_api_server(
    world: World,
) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    let running = world
        .create_and_run(&pod("stays", Some(REAL), &gpus(2, 8_000)))
        .await?;
    let uid = running.uid().unwrap_or_default();
    let seen = world.seen("stays", "main").await?;
    let before = processes(&uid, "86400");
    ensure!(before.len() == 1, "{before:?}");
    cluster.processes.stop(Component::ApiServer.name()).await?;
    cluster.processes.crash(&agent(REAL)).await?;
    cluster.processes.start_again(&agent(REAL))?;
    before[0].signal(Signal::SIGKILL);
    let again = until(
        "the container to start again",
        WAIT_TIMEOUT * 2,
        async || {
            let now = processes(&uid, "86400");
            (now.len() == 1 && now != before).then_some(())
        },
    )
    .await;
    cluster.processes.start_again(Component::ApiServer.name())?;
    cluster.api_server_is_ready().await?;
    again?;
    cluster.node_is_ready(REAL).await?;
    until("the agent to be ready", WAIT_TIMEOUT, async || {
        (allocatable(&world, REAL).await? == 20).then_some(())
    })
    .await?;
    world.runs("stays").await?;
    ensure!(world.seen("stays", "main").await? == seen);
    Ok(())
}
