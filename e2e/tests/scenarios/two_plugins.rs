//! Two scheduler plugins that bind at the same time.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use domain::claim::Claim;
use e2e::{http::post, machine::PLUGIN_PORT, wait::until};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};
use serde_json::json;

use super::{
    specs::{gpus, pod},
    world::{WAIT_TIMEOUT, World},
};

const NODE: &str = "hollow-h100";
const SCHEDULER: &str = "tessera-scheduler";
/// Ports of the second plugin: extender and admin.
const SECOND: [u16; 2] = [PLUGIN_PORT + 1, PLUGIN_PORT + 2];

/// Issue 12: of 26 slots 14 were held twice. One of the two is killed while it binds, and comes back.
pub(crate) async fn two_plugins_hold_no_slot_twice(world: World) -> anyhow::Result<()> {
    let processes = &world.tessera.cluster.processes;
    let mut second = processes.spec("plugin")?;
    "plugin-second".clone_into(&mut second.name);
    let is_address = |arg: &String| arg.starts_with("--listen=") || arg.starts_with("--admin");
    second.args.retain(|arg| !is_address(arg));
    let [listen, admin] = SECOND;
    let second = second
        .arg(format!("--listen=127.0.0.1:{listen}"))
        .arg(format!("--admin-address=127.0.0.1:{admin}"));
    processes.stop(SCHEDULER).await?;
    processes.start(&second)?;
    let done = bind_by_both(&world).await;
    processes.remove(&second.name).await?;
    processes.start_again(SCHEDULER)?;
    done
}

async fn bind_by_both(world: &World) -> anyhow::Result<()> {
    let names: Vec<String> = (0..20).map(|number| format!("both-{number}")).collect();
    let mut specs = Vec::new();
    for name in &names {
        let mut pod = pod(name, Some(NODE), &gpus(1, 40_000));
        pod["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
        specs.push(pod);
    }
    let pods = try_join_all(specs.iter().map(|pod| world.create(pod))).await?;
    let ports = [PLUGIN_PORT, SECOND[0]];
    let bindings = pods.iter().enumerate();
    let bindings =
        join_all(bindings.map(|(at, pod)| bind(pod, ports[at % 2], ports[(at + 1) % 2])));
    let kill = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let processes = &world.tessera.cluster.processes;
        processes.crash("plugin").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        processes.start_again("plugin")?;
        anyhow::Ok(())
    };
    let (answers, killed) = futures::future::join(bindings, kill).await;
    killed?;
    let bound = answers.into_iter().collect::<anyhow::Result<Vec<bool>>>()?;
    let bound = bound.iter().filter(|bound| **bound).count();
    let halves = claimed_halves(world).await?;
    let published = world.tessera.gpu_node(NODE).await?.gpus.len();
    eprintln!("{bound} of {} pods are bound", names.len());
    ensure!(halves.len() == bound, "two pods have one half: {halves:?}");
    ensure!(bound == 2 * published, "{bound} on {published} GPUs");
    Ok(())
}

/// Asks one plugin and then the other until the pod is bound (true) or the node is full (false).
async fn bind(pod: &Pod, first: u16, second: u16) -> anyhow::Result<bool> {
    let name = pod.name_any();
    let args =
        json!({ "PodName": name, "PodNamespace": "default", "PodUID": pod.uid(), "Node": NODE });
    let mut last = String::new();
    let what = format!("{name} to be bound or refused");
    let outcome = until(&what, WAIT_TIMEOUT, async || {
        for port in [first, second] {
            last = post(port, "/bind", &args).await.unwrap_or_default();
            if last.contains("can no longer take the pod") {
                return Some(false);
            }
            if last.contains(r#""Error":"""#) {
                return Some(true);
            }
        }
        None
    });
    outcome.await.with_context(|| last)
}

/// GPU and start of all pods' claims; each has half a GPU.
async fn claimed_halves(world: &World) -> anyhow::Result<BTreeSet<(String, u8)>> {
    let pods = world.pods().list(&ListParams::default()).await?;
    let mut halves = BTreeSet::new();
    for pod in pods {
        if let Some(text) = pod.annotations().get(domain::keys::CLAIM) {
            let claim = Claim::from_annotation(text)?;
            halves.extend(claim.slots().map(|slot| (slot.gpu.clone(), slot.start)));
        }
    }
    Ok(halves)
}
