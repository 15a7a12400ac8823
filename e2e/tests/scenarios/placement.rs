//! Which pod goes where, and what is reported when it fits nowhere.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use e2e::wait::until;
use k8s_openapi::api::{apps::v1::Deployment, scheduling::v1::PriorityClass};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use super::{
    specs::{annotated, gpus, pod},
    world::{Fingerprint, REAL, Seen, WAIT_TIMEOUT, World},
};

pub(crate) async fn sizes_fit_in_any_order_and_disturb_nobody(world: World) -> anyhow::Result<()> {
    let published = world.tessera.gpu_node(REAL).await?.gpus;
    for (gpu, sizes) in published
        .iter()
        .zip([[20_000, 10_000, 40_000], [10_000, 20_000, 40_000]])
    {
        let mut before: Vec<(String, Seen, Fingerprint)> = Vec::new();
        for size in sizes {
            let name = format!("size-{size}-{}", gpu.index);
            let mut wanted = pod(&name, Some(REAL), &gpus(1, size));
            wanted["metadata"]["annotations"] = json!({ "nvidia.com/use-gpuuuid": gpu.uuid });
            world.create_and_run(&wanted).await?;
            let seen = world.seen(&name, "main").await?;
            let instances = seen.instances();
            ensure!(instances.len() == 1 && seen.gpus.len() == 1, "{seen:?}");
            ensure!(seen.gpus[0].uuid == gpu.uuid, "{seen:?}");
            // A request up to the size in a profile's name is served by it: 10,000 MiB by 1g.10gb.
            ensure!(instances[0].memory_mib + 512 >= size, "{seen:?}");
            for (name, seen, print) in &before {
                ensure!(
                    world.seen(name, "main").await? == *seen,
                    "{name} was disturbed"
                );
                ensure!(
                    world.fingerprint(name).await? == *print,
                    "{name} was restarted"
                );
            }
            let print = world.fingerprint(&name).await?;
            before.push((name, seen, print));
        }
    }
    Ok(())
}

pub(crate) async fn pods_without_a_mode_use_both_pools(world: World) -> anyhow::Result<()> {
    let mut modes = BTreeSet::new();
    for (number, size) in [1_000, 1_500, 8_000, 9_500, 19_000, 38_000]
        .into_iter()
        .enumerate()
    {
        let running = world
            .create_and_run(&pod(&format!("any-{number}"), None, &gpus(1, size)))
            .await?;
        modes.insert(annotated(&running)?.0);
        ensure!(running.annotations()["tessera.dev/vgpu-mode-by"] == "tessera");
    }
    ensure!(modes.len() == 2, "all of them went to {modes:?}");
    Ok(())
}

pub(crate) async fn what_does_not_fit_waits_and_says_what_would(
    world: World,
) -> anyhow::Result<()> {
    // Two GPUs of the real node: three halves and a tenth leave room for a quarter, not for a half.
    for name in ["half-0", "half-1", "half-2"] {
        world
            .create_and_run(&pod(name, Some(REAL), &gpus(1, 40_000)))
            .await?;
    }
    world
        .create_and_run(&pod("tenth", Some(REAL), &gpus(1, 9_000)))
        .await?;
    world
        .create(&pod("waits", Some(REAL), &gpus(1, 40_000)))
        .await?;
    let event = world
        .event(
            "waits",
            &["FailedScheduling", "3g.40gb", "would fit now: ", "20gb"],
        )
        .await?;
    eprintln!("{event}");
    let waiting = world.pods().get("waits").await?;
    let phase = waiting.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Pending"), "{phase:?}");
    world.delete("half-1").await?;
    world.runs("waits").await?;
    Ok(())
}

pub(crate) async fn a_count_alone_is_whole_gpus(world: World) -> anyhow::Result<()> {
    let mut whole = pod("whole", Some(REAL), &json!({ "nvidia.com/gpu": "1" }));
    whole["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
    world.create_and_run(&whole).await?;
    let seen = world.seen("whole", "main").await?.instances();
    ensure!(seen.len() == 1 && seen[0].memory_mib > 80_000, "{seen:?}");
    let rows = world.rows().await?;
    let row = rows.first().context("no row")?;
    ensure!(row.profile == "7g.80gb", "{row:?}");
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.tessera.cluster.client());
    let status = nodes.get(REAL).await?.status.unwrap_or_default();
    let allocatable = status.allocatable.unwrap_or_default();
    // Two GPUs of deviceSplitCount ids each.
    ensure!(allocatable["nvidia.com/gpu"].0 == "20", "{allocatable:?}");
    Ok(())
}

pub(crate) async fn a_more_important_pod_displaces_the_cheapest(
    world: World,
) -> anyhow::Result<()> {
    let client = world.tessera.cluster.client();
    let classes: Api<PriorityClass> = Api::all(client);
    for (name, value) in [("low", 10), ("high", 1_000)] {
        let class = json!({ "metadata": { "name": name }, "value": value });
        let class = serde_json::from_value(class)?;
        match classes.create(&PostParams::default(), &class).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            created => drop(created?),
        }
    }
    let of_class = |name: &str, class: &str, mib| {
        let mut pod = pod(name, Some(REAL), &gpus(1, mib));
        pod["spec"]["priorityClassName"] = json!(class);
        pod
    };
    // One GPU is held by two pods, the other by one that is as large as both.
    world
        .create_and_run(&of_class("small-a", "low", 40_000))
        .await?;
    world
        .create_and_run(&of_class("small-b", "low", 40_000))
        .await?;
    world
        .create_and_run(&of_class("whole", "low", 80_000))
        .await?;
    // As important as the others: it waits.
    world.create(&of_class("equal", "low", 80_000)).await?;
    world.event("equal", &["no free GPU memory"]).await?;
    world
        .create_and_run(&of_class("high", "high", 80_000))
        .await?;
    let event = world
        .event("whole", &["Preempted by pod default/high"])
        .await?;
    ensure!(event.contains("higher priority"), "{event}");
    for name in ["small-a", "small-b"] {
        let status = world.pods().get(name).await?.status;
        let phase = status.and_then(|status| status.phase);
        ensure!(phase.as_deref() == Some("Running"), "{name} is {phase:?}");
    }
    ensure!(world.pods().get_opt("whole").await?.is_none(), "it goes on");
    Ok(())
}

pub(crate) async fn a_pod_that_allows_it_restarts_elsewhere_to_make_room(
    world: World,
) -> anyhow::Result<()> {
    world
        .create_and_run(&pod("half-a", Some(REAL), &gpus(1, 40_000)))
        .await?;
    world
        .create_and_run(&pod("half-b", Some(REAL), &gpus(1, 40_000)))
        .await?;
    let template = pod("small", Some(REAL), &gpus(1, 8_000));
    let deployment = json!({
        "metadata": { "name": "small" },
        "spec": {
            "selector": { "matchLabels": { "app": "small" } },
            "template": {
                "metadata": {
                    "labels": { "app": "small" },
                    "annotations": { "nvidia.com/allow-restart": "true" },
                },
                "spec": template["spec"],
            },
        },
    });
    let deployments: Api<Deployment> = Api::default_namespaced(world.tessera.cluster.client());
    deployments
        .create(&PostParams::default(), &serde_json::from_value(deployment)?)
        .await?;
    let small = async || {
        let selector = ListParams::default().labels("app=small");
        let pods = world.pods().list(&selector).await.ok()?.items.into_iter();
        let mut running = pods.filter(|pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        });
        running.next().map(|pod| pod.name_any())
    };
    let before = until("the deployment's pod to run", WAIT_TIMEOUT, small).await?;
    world.delete("half-a").await?;
    // Half of one GPU is free, and the small pod stands on the other.
    world
        .create_and_run(&pod("whole", Some(REAL), &gpus(1, 80_000)))
        .await?;
    let after = until("the deployment's pod to run again", WAIT_TIMEOUT, small).await?;
    ensure!(before != after, "it was not restarted");
    world
        .event(&before, &["Restarted elsewhere", "default/whole"])
        .await?;
    deployments
        .delete("small", &DeleteParams::default())
        .await?;
    Ok(())
}

/// Issue 12: a Deployment in another pool was restarted forty times for a pod that could not use its place.
pub(crate) async fn nobody_is_restarted_for_a_pod_that_cannot_use_the_place(
    world: World,
) -> anyhow::Result<()> {
    let mut template = pod("bystander", None, &gpus(1, 8_000));
    template["metadata"] = json!({ "labels": { "app": "bystander" }, "annotations": {
        "nvidia.com/allow-restart": "true", "nvidia.com/vgpu-mode": "mig", "nvidia.com/use-gputype": "H100" } });
    let deployment = json!({ "metadata": { "name": "bystander" }, "spec": {
        "selector": { "matchLabels": { "app": "bystander" } }, "template": template } });
    let deployments: Api<Deployment> = Api::default_namespaced(world.tessera.cluster.client());
    deployments
        .create(&PostParams::default(), &serde_json::from_value(deployment)?)
        .await?;
    let selector = ListParams::default().labels("app=bystander");
    let names = async || {
        let pods = world.pods().list(&selector).await.ok()?.items;
        let names: BTreeSet<String> = pods.iter().map(ResourceExt::name_any).collect();
        (!names.is_empty()).then_some(names)
    };
    let before = until("the deployment's pod to be there", WAIT_TIMEOUT, names).await?;
    for name in &before {
        world.runs(name).await?;
    }
    let mig = json!({ "nvidia.com/vgpu-mode": "mig" });
    let mut fills = pod("fills-real", Some(REAL), &json!({ "nvidia.com/gpu": "2" }));
    fills["metadata"]["annotations"] = mig.clone();
    world.create_and_run(&fills).await?;
    let mut waits = pod("only-real", Some(REAL), &gpus(1, 8_000));
    waits["metadata"]["annotations"] = mig;
    world.create(&waits).await?;
    world.event("only-real", &["FailedScheduling"]).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after = names().await;
    for name in &before {
        let events = world.events(name).await?;
        ensure!(
            !events.iter().any(|event| event.contains("Moved")),
            "{events:?}"
        );
    }
    ensure!(
        after.as_ref() == Some(&before),
        "{before:?}, after {after:?}"
    );
    deployments
        .delete("bystander", &DeleteParams::default())
        .await?;
    Ok(())
}
