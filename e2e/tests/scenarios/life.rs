//! Instances come with their pods, go with them, and outlive the agent.

use std::time::Duration;

use anyhow::ensure;
use domain::VgpuMode;
use e2e::{GpuNodeSpec, tessera::agent, wait::until};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{PATIENCE, REAL, World, annotated, busy, gpus, pod};

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
    let published = world.instances(REAL, "seed").await?;
    let inside = inside.into_iter().map(|instance| instance.uuid).collect();
    ensure!(
        published == inside,
        "published {published:?}, inside {inside:?}"
    );
    let table = world
        .tessera
        .cluster
        .kubectl(&["get", "gpunodes", REAL])
        .await?;
    ensure!(table.contains("=default/seed"), "{table}");

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
    until("NVML to have none left", PATIENCE, async || {
        (world.on_cards(REAL) == 0).then_some(())
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
    let published = world.instances(REAL, "before").await?;
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
    let adopted = world.instances(REAL, "before").await?;
    ensure!(
        adopted == published && adopted.len() == 1,
        "{adopted:?}, before {published:?}"
    );
    let after = world.seen("after", "main").await?;
    ensure!(after.instances().len() == 1 && after != seen);
    // Deleted while the agent is away: nothing is left.
    processes.crash(&agent(REAL)).await?;
    world.delete("before").await?;
    world.tessera.start_agent_again(REAL).await?;
    until(
        "the instance of the deleted pod to be gone",
        PATIENCE,
        async || (world.on_cards(REAL) == 1).then_some(()),
    )
    .await?;
    Ok(())
}

pub(crate) async fn a_label_turns_a_node_into_a_mig_node_and_back(
    world: World,
) -> anyhow::Result<()> {
    const FLIP: &str = "flip-h100";
    let spec = GpuNodeSpec::new(FLIP, "h100-80gb", 1, VgpuMode::HamiCore);
    world
        .tessera
        .add_hollow_nodes("hollow-flip", &[spec])
        .await?;
    let processes = &world.tessera.cluster.processes;
    let before = processes.running(&agent(FLIP));
    let nodes: Api<Node> = Api::all(world.tessera.cluster.client());
    for (turn, mode) in [VgpuMode::Mig, VgpuMode::HamiCore].into_iter().enumerate() {
        let label = json!({ "metadata": { "labels": { "nvidia.com/vgpu-mode": mode } } });
        nodes
            .patch(FLIP, &PatchParams::default(), &Patch::Merge(label))
            .await?;
        until(
            &format!("the GPU to work as {mode}"),
            PATIENCE,
            async || {
                let status = world.tessera.gpu_node(FLIP).await.ok()?;
                let gpu = status.gpus.first()?;
                (gpu.mode == mode && gpu.changing_to.is_none()).then_some(())
            },
        )
        .await?;
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
