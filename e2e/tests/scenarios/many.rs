//! Many pods at once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use e2e::wait::until;
use futures::future::try_join_all;
use serde_json::json;

use super::{
    specs::{annotated, gpus, pod},
    world::{REAL, WAIT_TIMEOUT, World},
};

pub(crate) async fn fifty_pods_at_once(world: World) -> anyhow::Result<()> {
    let sizes = [8_000, 1_000, 9_500, 19_000, 4_000];
    let pods: Vec<_> = (0..50)
        .map(|number| {
            // Ten for the real node, which they nearly fill; the others go where they like among the hollow.
            let node = (number % 5 == 0).then_some(REAL);
            let limits = gpus(1, sizes[number % sizes.len()]);
            let mut pod = pod(&format!("many-{number}"), node, &limits);
            if node.is_none() {
                pod["spec"]["nodeSelector"] = json!({ "tessera.dev/hollow": "true" });
            }
            pod
        })
        .collect();
    let running = try_join_all(pods.iter().map(|pod| world.create_and_run(pod))).await?;
    let mut by_node = BTreeMap::<String, usize>::new();
    for pod in &running {
        *by_node.entry(annotated(pod)?.1).or_default() += 1;
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        ensure!(phase == Some("Running"), "{phase:?}");
    }
    eprintln!("pods by node: {by_node:?}");
    ensure!(by_node.len() == 3, "{by_node:?}");
    // No two pods have one instance, in their claims, in what is published and behind NVML.
    let rows = until("all instances to be published", WAIT_TIMEOUT, async || {
        let rows = world.rows().await.ok()?;
        rows.iter().all(|row| !row.uuid.is_empty()).then_some(rows)
    })
    .await?;
    let of_mig: Vec<_> = rows.iter().filter(|row| row.mode == "mig").collect();
    let uuids: BTreeSet<_> = of_mig.iter().map(|row| (&row.node, &row.uuid)).collect();
    ensure!(rows.len() == 50, "{} rows", rows.len());
    ensure!(uuids.len() == of_mig.len());
    for (name, status) in world.tessera.gpu_nodes().await? {
        for (gpu, simulated) in status
            .gpus
            .iter()
            .zip(world.tessera.gpus(&name).snapshot()?.gpus)
        {
            let mut slices = BTreeSet::new();
            for instance in simulated.instances {
                for slice in instance.start..instance.start + instance.size {
                    ensure!(
                        slices.insert(slice),
                        "{name} GPU {}: slice {slice} twice",
                        gpu.index
                    );
                }
            }
        }
    }
    Ok(())
}
