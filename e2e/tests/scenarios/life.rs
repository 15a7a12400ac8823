//! Instances come with their pods, go with them, and outlive the agent.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use domain::mode::{NodeMode, VgpuMode};
use e2e::{
    cluster::component::Component,
    tessera::{Tessera, agent, nodes::GpuNodeSpec},
    wait::until,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{
    specs::{annotated, gpus, pod},
    world::{REAL, WAIT_TIMEOUT, World, busy},
};

pub(crate) async fn the_pod_of_the_seed_gets_two_instances_and_leaves_none(
    world: World,
) -> anyhow::Result<()> {
    let mut seed = pod("seed", Some(REAL), &gpus(2, 8000));
    seed["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
    world.create_and_run(&seed).await?;
    let inside = world.seen("seed", "main").await?.instances();
    ensure!(
        inside.len() == 2 && inside[0].uuid != inside[1].uuid,
        "{inside:?}"
    );
    ensure!(
        inside.iter().all(|instance| instance.memory_mib >= 8000),
        "{inside:?}"
    );
    let published = world.instances(REAL, "seed", 2).await?;
    let inside = inside.into_iter().map(|instance| instance.uuid).collect();
    ensure!(
        published == inside,
        "published {published:?}, inside {inside:?}"
    );
    let table = world
        .tessera
        .cluster
        .kubectl(&["get", "gpunodes", REAL, "-o", "wide"])
        .await?;
    ensure!(table.contains("=default/seed"), "{table}");
    world
        .event("seed", &["InstanceCreated", "1g.10gb with 9728 MiB"])
        .await?;

    world.delete("seed").await?;
    until(
        "its instances to be gone or idle",
        Duration::from_secs(5),
        async || {
            let status = world.tessera.gpu_node(REAL).await.ok()?;
            (busy(&status) == 0).then_some(())
        },
    )
    .await?;
    until("NVML to have none left", WAIT_TIMEOUT, async || {
        (world.on_gpus(REAL) == 0).then_some(())
    })
    .await?;
    Ok(())
}

pub(crate) async fn a_killed_agent_adopts_what_runs(world: World) -> anyhow::Result<()> {
    let processes = &world.tessera.cluster.processes;
    world
        .create_and_run(&pod("before", Some(REAL), &gpus(1, 20_000)))
        .await?;
    let (seen, print) = (
        world.seen("before", "main").await?,
        world.fingerprint("before").await?,
    );
    let published = world.instances(REAL, "before", 1).await?;
    processes.crash(&agent(REAL)).await?;
    world.tessera.start_agent_again(REAL).await?;
    world
        .create_and_run(&pod("after", Some(REAL), &gpus(1, 20_000)))
        .await?;
    ensure!(world.seen("before", "main").await? == seen);
    ensure!(
        world.fingerprint("before").await? == print,
        "the container was restarted"
    );
    let adopted = world.instances(REAL, "before", 1).await?;
    ensure!(adopted == published, "{adopted:?}, before {published:?}");
    let after = world.seen("after", "main").await?;
    ensure!(after.instances().len() == 1 && after != seen);
    // Deleted while the agent is away: nothing is left.
    processes.crash(&agent(REAL)).await?;
    world.delete("before").await?;
    world.tessera.start_agent_again(REAL).await?;
    until(
        "the instance of the deleted pod to be gone",
        WAIT_TIMEOUT,
        async || (world.on_gpus(REAL) == 1).then_some(()),
    )
    .await?;
    Ok(())
}

/// Issue 12: 90 s after kill -9 the GpuNode said that it was ready and registered.
pub(crate) async fn a_gpu_node_says_that_its_agent_is_gone(world: World) -> anyhow::Result<()> {
    const NODE: &str = "hollow-a100";
    let says = async |ready: &str, registered: &str| {
        let status = world.tessera.gpu_node(NODE).await.ok()?;
        let has = |kind: &str, value: &str| {
            let mut all = status.conditions.iter();
            all.any(|known| known.kind == kind && known.status == value)
        };
        (has("Ready", ready) && has("Registered", registered)).then(|| status.conditions.clone())
    };
    until("the agent to be registered", WAIT_TIMEOUT, async || {
        says("True", "True").await
    })
    .await?;
    world.tessera.cluster.processes.crash(&agent(NODE)).await?;
    // WAIT_TIMEOUT is 40 s: so soon it must be in every view.
    let gone = until(
        "the agent to be reported as gone",
        WAIT_TIMEOUT,
        async || says("Unknown", "False").await,
    )
    .await?;
    let message = gone.iter().find(|known| known.kind == "Registered");
    let message = message
        .map(|known| known.message.clone())
        .unwrap_or_default();
    ensure!(message.contains("tessera-nodeagent"), "{message}");
    world
        .create(&pod("waits", Some(NODE), &gpus(1, 8_000)))
        .await?;
    world
        .event(
            "waits",
            &["FailedScheduling", "not registered with kubelet"],
        )
        .await?;
    the_scheduler_cannot_change_a_layout(&world, NODE).await?;
    world.tessera.start_agent_again(NODE).await?;
    until(
        "the agent to be registered again",
        WAIT_TIMEOUT,
        async || says("True", "True").await,
    )
    .await?;
    world.runs("waits").await?;
    Ok(())
}

async fn the_scheduler_cannot_change_a_layout(world: &World, node: &str) -> anyhow::Result<()> {
    let path = format!("/apis/tessera.dev/v1alpha1/gpunodes/{node}/status");
    let forged = http::Request::patch(path)
        .header("Content-Type", "application/merge-patch+json")
        .header(
            "Impersonate-User",
            "system:serviceaccount:tessera-system:tessera-scheduler",
        )
        .body(br#"{"status":{"layout":"forged"}}"#.to_vec())?;
    let client = world.tessera.cluster.client();
    let refused = client.request::<serde_json::Value>(forged).await.err();
    let refused = refused.context("the scheduler changed a layout")?;
    ensure!(
        refused
            .to_string()
            .contains("may change only the conditions"),
        "{refused}"
    );
    Ok(())
}

/// Issue 5: kubelet fails pods that it admits while no agent is registered, and the scheduler learns too late that none is.
pub(crate) async fn no_pod_fails_while_an_agent_is_restarted_in_order(
    world: World,
) -> anyhow::Result<()> {
    let processes = &world.tessera.cluster.processes;
    let names: Vec<_> = (0..14).map(|number| format!("during-{number}")).collect();
    let create = async {
        for name in &names {
            world
                .create(&pod(name, Some(REAL), &gpus(1, 8_000)))
                .await?;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        anyhow::Ok(())
    };
    let restart = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        processes.stop(&agent(REAL)).await?;
        // As long as the update of a DaemonSet may take; kubelet reports missing devices only every ten seconds.
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.tessera.start_agent_again(REAL).await?;
        anyhow::Ok(())
    };
    futures::future::try_join(create, restart).await?;
    for name in &names {
        world.runs(name).await?;
    }
    Ok(())
}

pub(crate) async fn a_label_turns_a_node_into_a_mig_node_and_back(
    world: World,
) -> anyhow::Result<()> {
    const FLIP: &str = "flip-h100";
    let spec = GpuNodeSpec::new(FLIP, "h100-80gb", 1, VgpuMode::HamiCore);
    world.tessera.add_hollow_nodes(&[spec]).await?;
    let processes = &world.tessera.cluster.processes;
    let before = processes.running(&agent(FLIP));
    let turns = [
        (NodeMode::Mig, VgpuMode::Mig),
        (NodeMode::HamiCore, VgpuMode::HamiCore),
    ];
    for (turn, (label, mode)) in turns.into_iter().enumerate() {
        world.label(FLIP, label).await?;
        world.works_as(FLIP, mode).await?;
        let name = format!("turn-{turn}");
        let running = world
            .create_and_run(&pod(&name, Some(FLIP), &gpus(1, 8000)))
            .await?;
        let (chosen, _) = annotated(&running)?;
        ensure!(chosen == mode.to_string(), "{chosen}");
        world.clear().await?;
    }
    ensure!(
        before.is_some() && processes.running(&agent(FLIP)) == before,
        "the agent was restarted"
    );
    Ok(())
}

pub(crate) async fn a_restarted_kubelet_finds_devices_and_pods_as_they_were(
    world: World,
) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    world
        .create_and_run(&pod("before", Some(REAL), &gpus(1, 8_000)))
        .await?;
    let print = world.fingerprint("before").await?;
    let published = world.instances(REAL, "before", 1).await?;
    cluster.processes.restart(Component::Kubelet.name()).await?;
    // Pods that kubelet admits before the agent has registered again would fail for good.
    let nodes: Api<Node> = Api::all(cluster.client());
    let allocatable = async || {
        let status = nodes.get(REAL).await.ok()?.status?;
        let count = status.allocatable?.get("nvidia.com/gpu")?.0.clone();
        (count == "20").then_some(())
    };
    until("the devices to be back", WAIT_TIMEOUT, allocatable).await?;
    cluster.node_is_ready(REAL).await?;
    until(
        "the device plugin to be known again",
        WAIT_TIMEOUT,
        async || {
            let log = std::fs::read_to_string(cluster.processes.log_file(&agent(REAL))).ok()?;
            let after = log.rsplit_once("kubelet was restarted")?.1;
            after.contains("Registered with kubelet").then_some(())
        },
    )
    .await?;
    world
        .create_and_run(&pod("after", Some(REAL), &gpus(1, 8_000)))
        .await?;
    ensure!(
        world.fingerprint("before").await? == print,
        "the container was restarted"
    );
    ensure!(world.instances(REAL, "before", 1).await? == published);
    let [before, after] = [
        world.seen("before", "main").await?,
        world.seen("after", "main").await?,
    ];
    ensure!(before != after, "two pods have one device: {before:?}");
    Ok(())
}

pub(crate) async fn a_restarted_plugin_knows_every_claim(world: World) -> anyhow::Result<()> {
    let processes = &world.tessera.cluster.processes;
    let half = |name: &str| pod(name, Some(REAL), &gpus(1, 40_000));
    for name in ["first", "second", "third"] {
        world.create_and_run(&half(name)).await?;
    }
    processes.crash("plugin").await?;
    // Nobody filters now: the pod waits, and is not placed by a scheduler that knows no claims.
    world.create(&half("fourth")).await?;
    world.create(&half("fifth")).await?;
    world.event("fourth", &["FailedScheduling"]).await?;
    processes.start_again("plugin")?;
    // One half is left: one of them runs, and the other has an event that says why it does not.
    let one = until("one of two pods to run", WAIT_TIMEOUT, async || {
        let mut running = Vec::new();
        for name in ["fourth", "fifth"] {
            let status = world.pods().get(name).await.ok()?.status?;
            if status.phase.as_deref() == Some("Running") {
                running.push(name);
            }
        }
        (!running.is_empty()).then_some(running)
    })
    .await?;
    let other = if one == ["fourth"] { "fifth" } else { "fourth" };
    ensure!(one.len() == 1, "both run");
    world.event(other, &["no free GPU memory"]).await?;
    let rows = world.rows().await?;
    let placed: BTreeSet<_> = rows
        .iter()
        .filter(|row| !row.placement.is_empty())
        .map(|row| (&row.gpu, &row.placement))
        .collect();
    ensure!(placed.len() == 4, "{rows:?}");
    Ok(())
}

pub(crate) async fn nothing_changes_while_the_api_server_is_away(
    world: World,
) -> anyhow::Result<()> {
    let cluster = &world.tessera.cluster;
    world
        .create_and_run(&pod("stays", Some(REAL), &gpus(2, 8_000)))
        .await?;
    let (seen, print) = (
        world.seen("stays", "main").await?,
        world.fingerprint("stays").await?,
    );
    cluster.processes.stop(Component::ApiServer.name()).await?;
    // Longer than the TTL of idle instances here.
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(
        world.on_gpus(REAL) == 2,
        "instances went with the API server"
    );
    cluster.processes.start_again(Component::ApiServer.name())?;
    cluster.api_server_is_ready().await?;
    world
        .create_and_run(&pod("next", Some(REAL), &gpus(1, 8_000)))
        .await?;
    ensure!(world.seen("stays", "main").await? == seen);
    ensure!(
        world.fingerprint("stays").await? == print,
        "the container was restarted"
    );
    Ok(())
}

/// Issue 5: kubelet gives a pod ids that are named after any GPU; the ids of the lost GPU made pods on the others fail.
pub(crate) async fn a_node_that_lost_a_gpu_over_a_reboot_runs_the_pods_of_the_others(
    world: World,
) -> anyhow::Result<()> {
    let published = world.tessera.gpu_node(REAL).await?.gpus;
    let mut stays = pod("stays", Some(REAL), &gpus(6, 8_000));
    stays["metadata"]["annotations"] = json!({ "nvidia.com/use-gpuuuid": published[1].uuid });
    let before = world.create_and_run(&stays).await?;
    let print = world.fingerprint("stays").await?;
    let lose = |lost| {
        let gpus = world.tessera.gpus(REAL);
        gpus.with(|state| state.gpus[0].lost = lost)
    };
    world.tessera.power_off(REAL).await?;
    lose(true)?;
    world.tessera.power_on(REAL).await?;
    let again = world.runs_again("stays", &print).await;
    lose(false)?;
    let pod = again?;
    ensure!(pod.uid() == before.uid(), "it is another pod");
    let seen = world.seen("stays", "main").await?;
    ensure!(
        seen.gpus.len() == 1 && seen.gpus[0].uuid == published[1].uuid,
        "{seen:?}"
    );
    // Once the GPU is back, it takes pods again.
    let mut back = self::pod("back", Some(REAL), &gpus(1, 40_000));
    back["metadata"]["annotations"] = json!({ "nvidia.com/use-gpuuuid": published[0].uuid });
    world.create_and_run(&back).await?;
    Ok(())
}

pub(crate) async fn a_rebooted_node_comes_back_by_itself(world: World) -> anyhow::Result<()> {
    const HOPPER: &str = "hollow-h100";
    let tessera = &world.tessera;
    let pods = [(REAL, "real", 2), (HOPPER, "hopper", 1)];
    let mut before = Vec::new();
    for (node, name, count) in pods {
        let mut pod = pod(name, Some(node), &gpus(count, 8_000));
        pod["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
        let running = world.create_and_run(&pod).await?;
        before.push((running.uid(), world.fingerprint(name).await?));
    }
    for (node, ..) in pods {
        tessera.power_off(node).await?;
    }
    // The hardware has lost all instances, and an H100 its MIG mode too.
    ensure!(world.on_gpus(REAL) + world.on_gpus(HOPPER) == 0);
    let in_mig_mode = || -> anyhow::Result<usize> {
        let all = tessera.gpus(HOPPER).snapshot()?.gpus;
        Ok(all.iter().filter(|gpu| gpu.mig).count())
    };
    ensure!(in_mig_mode()? == 0);
    for (node, ..) in pods {
        tessera.power_on(node).await?;
    }
    for ((node, name, count), (uid, print)) in pods.into_iter().zip(before) {
        let pod = world.runs_again(name, &print).await?;
        ensure!(pod.uid() == uid, "{name} is another pod");
        has_exactly_its_instances(tessera, node, &pod, count)?;
    }
    until("all GPUs to be in MIG mode", WAIT_TIMEOUT, async || {
        (in_mig_mode().ok()? == 8).then_some(())
    })
    .await?;
    let inside = world.seen("real", "main").await?.instances();
    let inside: BTreeSet<_> = inside.into_iter().map(|instance| instance.uuid).collect();
    ensure!(inside.len() == 2 && inside == world.instances(REAL, "real", 2).await?);
    // New pods run as well.
    world
        .create_and_run(&pod("next", Some(REAL), &gpus(1, 8_000)))
        .await?;
    world
        .create_and_run(&pod("next-hopper", Some(HOPPER), &gpus(1, 8_000)))
        .await?;
    Ok(())
}

/// That the instances behind NVML are those that the pod claims.
fn has_exactly_its_instances(
    tessera: &Tessera,
    node: &str,
    pod: &Pod,
    count: u32,
) -> anyhow::Result<()> {
    let claim = daemon::pods::claim(pod).context("a claim")??;
    let claimed: BTreeSet<_> = claim
        .slots()
        .map(|slot| (slot.gpu.clone(), slot.profile.clone(), slot.start))
        .collect();
    let mut there = BTreeSet::new();
    for gpu in tessera.gpus(node).snapshot()?.gpus {
        for instance in &gpu.instances {
            ensure!(instance.compute.len() == 1, "{instance:?}");
            let profile = gpu.model().by_id(instance.profile_id);
            let profile = profile.context("a profile")?.name.clone();
            there.insert((gpu.uuid(), profile, instance.start));
        }
    }
    ensure!(
        claimed == there && there.len() == usize::try_from(count)?,
        "claimed {claimed:?}, there {there:?}"
    );
    Ok(())
}
