//! Pods of several containers: each has exactly its own devices.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{
    specs::{container, gpus, pod},
    world::{REAL, Seen, World},
};

/// A container that prints what it sees, and ends.
fn probe(name: &str, limits: &Value) -> Value {
    let mut probe = container(name, limits);
    probe["command"] = json!(["tessera-probe"]);
    probe
}

impl World {
    /// What a container printed.
    async fn printed(&self, pod: &str, container: &str) -> anyhow::Result<Seen> {
        let text = self
            .tessera
            .cluster
            .kubectl(&["logs", pod, "-c", container])
            .await?;
        serde_json::from_str(&text).context(text)
    }

    /// No device node, no library: a container without a request.
    async fn sees_nothing(&self, pod: &str, container: &str) -> anyhow::Result<()> {
        let cluster = &self.tessera.cluster;
        let nodes = cluster
            .kubectl(&[
                "exec",
                pod,
                "-c",
                container,
                "--",
                "sh",
                "-c",
                "ls /dev | grep -c nvidia || true",
            ])
            .await?;
        ensure!(nodes.trim() == "0", "{container} has {nodes} NVIDIA nodes");
        match self.seen(pod, container).await {
            Ok(seen) => bail!("{container} sees {seen:?}"),
            Err(_) => Ok(()),
        }
    }

    async fn sees_one(&self, pod: &str, container: &str, mib: u64) -> anyhow::Result<String> {
        let seen = self.seen(pod, container).await?.instances();
        ensure!(
            seen.len() == 1 && seen[0].memory_mib >= mib,
            "{container} sees {seen:?}"
        );
        Ok(seen[0].uuid.clone())
    }
}

pub(crate) async fn each_container_has_exactly_its_devices(world: World) -> anyhow::Result<()> {
    let mut three = pod("three", Some(REAL), &json!({}));
    three["spec"]["containers"] = json!([
        container("first", &json!({ "cpu": "10m" })),
        container("gpu", &gpus(1, 8000)),
        container("last", &json!({})),
    ]);
    world.create_and_run(&three).await?;
    world.sees_nothing("three", "first").await?;
    world.sees_one("three", "gpu", 8000).await?;
    world.sees_nothing("three", "last").await
}

pub(crate) async fn an_init_container_alone_has_a_gpu(world: World) -> anyhow::Result<()> {
    let mut only = pod("only-init", Some(REAL), &json!({}));
    only["spec"]["initContainers"] = json!([probe("prepare", &gpus(1, 8000))]);
    world.create_and_run(&only).await?;
    let printed = world.printed("only-init", "prepare").await?.instances();
    ensure!(
        printed.len() == 1 && printed[0].memory_mib >= 8000,
        "{printed:?}"
    );
    world.sees_nothing("only-init", "main").await
}

pub(crate) async fn an_init_container_has_another_size_than_the_application(
    world: World,
) -> anyhow::Result<()> {
    for (name, init, app) in [("init-large", 20_000, 8_000), ("init-small", 8_000, 19_000)] {
        let init_limits = gpus(1, init);
        let mut both = pod(name, Some(REAL), &gpus(1, app));
        both["spec"]["initContainers"] = json!([probe("prepare", &init_limits)]);
        world.create_and_run(&both).await?;
        let printed = world.printed(name, "prepare").await?.instances();
        // 20,000 MiB are served by 1g.20gb, sold as 20 GiB.
        ensure!(
            printed.len() == 1 && printed[0].memory_mib + 512 >= init,
            "init sees {printed:?}"
        );
        world.sees_one(name, "main", app).await?;
    }
    // Two init containers with two devices, then the same ids split between two applications.
    let mut split = pod("split", Some(REAL), &gpus(1, 8_000));
    split["spec"]["initContainers"] =
        json!([probe("one", &gpus(2, 8_000)), probe("two", &gpus(2, 9_000))]);
    split["spec"]["containers"] = json!([
        container("a", &gpus(1, 8_000)),
        container("b", &gpus(2, 8_000))
    ]);
    world.create_and_run(&split).await?;
    for init in ["one", "two"] {
        let printed = world.printed("split", init).await?.instances();
        ensure!(printed.len() == 2, "{init} sees {printed:?}");
    }
    let a = world.seen("split", "a").await?.instances();
    let b = world.seen("split", "b").await?.instances();
    let all: BTreeSet<_> = a.iter().chain(&b).collect();
    ensure!(
        a.len() == 1 && b.len() == 2 && all.len() == 3,
        "{a:?} {b:?}"
    );
    // What only the init containers had is not held for the pod's life, nor left.
    world.instances(REAL, "split", 3).await?;
    Ok(())
}

pub(crate) async fn a_sidecar_and_two_sizes(world: World) -> anyhow::Result<()> {
    let mut sidecar = container("sidecar", &gpus(1, 8_000));
    sidecar["restartPolicy"] = json!("Always");
    let mut many = pod("sidecar", Some(REAL), &json!({}));
    many["spec"]["initContainers"] = json!([sidecar, probe("prepare", &gpus(1, 8_000))]);
    many["spec"]["containers"] = json!([
        container("small", &gpus(1, 8_000)),
        container("large", &gpus(1, 38_000))
    ]);
    world.create_and_run(&many).await?;
    let mut all = BTreeSet::new();
    for (name, mib) in [("sidecar", 8_000), ("small", 8_000), ("large", 38_000)] {
        all.insert(world.sees_one("sidecar", name, mib).await?);
    }
    ensure!(all.len() == 3, "two containers have one device: {all:?}");
    let printed = world.printed("sidecar", "prepare").await?.instances();
    ensure!(printed.len() == 1, "{printed:?}");
    // The sidecar runs on while the init container has its own.
    let of_sidecar = world.sees_one("sidecar", "sidecar", 8_000).await?;
    ensure!(
        printed[0].uuid != of_sidecar,
        "the init container had the sidecar's device"
    );
    Ok(())
}
