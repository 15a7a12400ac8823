//! How long a pod with GPU takes to start, compared with one without in the same run.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use e2e::{
    error::Error,
    image::IMAGE,
    tessera::{Options, Tessera},
};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};

/// Pods per kind; the kinds take turns.
const ROUNDS: usize = 15;

/// The processes that are measured.
const PARTS: [&str; 3] = ["webhook", "plugin", "agent-real"];

/// Brings up the cluster, measures, takes it down.
pub(crate) async fn run(dir: &Path) -> anyhow::Result<()> {
    let tessera = Tessera::up(dir, Options::default(), |_| {}).await?;
    let used = Used::now(&tessera);
    let result = measure(&tessera).await;
    let churn = used.since(&tessera);
    // Until then the agent destroys what the last pod left.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = Used::now(&tessera);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let idle = used.since(&tessera);
    let recovered = recover(&tessera).await;
    e2e::teardown::down(dir).await?;
    let (without, with) = result?;
    let [without, with] = [without, with].map(|mut times| {
        times.sort();
        times
    });
    println!("Time from binding to running container on the real node, {ROUNDS} pods each:");
    for (what, times) in [("without GPU", &without), ("2 MIG instances", &with)] {
        println!(
            "{what:16} median {:4} ms, slowest {:4} ms",
            median(times).as_millis(),
            times.last().copied().unwrap_or_default().as_millis()
        );
    }
    let ratio = median(&with).as_secs_f64() / median(&without).as_secs_f64();
    println!("ratio of medians: {ratio:.2}");
    let mut recovered = recovered?;
    recovered.sort();
    println!(
        "Agent killed and started with {INSTANCES_IN_USE} instances in use, until kubelet knows its devices again: median {} ms, slowest {} ms",
        median(&recovered).as_millis(),
        recovered.last().copied().unwrap_or_default().as_millis()
    );
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    println!("\n{build} build: memory in MiB, CPU time in percent of one core");
    println!(
        "{:12} {:>9} {:>12} {:>6} {:>9} {:>9}",
        "", "resident", "anonymous", "peak", "CPU busy", "CPU idle"
    );
    for ((part, churn), idle) in PARTS.iter().zip(churn).zip(idle) {
        let (Some((_, busy)), Some(([resident, anonymous, most], quiet))) = (churn, idle) else {
            continue;
        };
        println!("{part:12} {resident:9.1} {anonymous:13.1} {most:6.1} {busy:9.3} {quiet:9.3}");
    }
    Ok(())
}

/// Instances in use while the agent is killed.
const INSTANCES_IN_USE: usize = 7;
/// The pod that has them; it is not deleted.
const LASTING_POD: &str = "holds";

/// Time from the start of an agent that was killed until kubelet knows its devices again.
async fn recover(tessera: &Tessera) -> anyhow::Result<Vec<Duration>> {
    let limits =
        json!({ "nvidia.com/gpu": INSTANCES_IN_USE.to_string(), "nvidia.com/gpumem": "8000" });
    start(tessera, LASTING_POD, &limits).await?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let agent = e2e::tessera::agent("real");
        tessera.cluster.processes.crash(&agent).await?;
        let started = Instant::now();
        tessera.start_agent_again("real").await?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// CPU time that the processes had used at a time.
struct Used(Instant, Vec<Option<Duration>>);

impl Used {
    fn look(tessera: &Tessera) -> Vec<Option<([u64; 3], Duration)>> {
        let processes = &tessera.cluster.processes;
        PARTS
            .iter()
            .map(|name| processes.running(name)?.usage())
            .collect()
    }

    fn now(tessera: &Tessera) -> Self {
        let times = Self::look(tessera).into_iter();
        Self(
            Instant::now(),
            times.map(|used| used.map(|(_, time)| time)).collect(),
        )
    }

    /// Memory now, in MiB, and the share of a core that was used since, in percent.
    #[allow(
        clippy::cast_precision_loss,
        reason = "memory sizes are far below 2^52"
    )]
    fn since(self, tessera: &Tessera) -> Vec<Option<([f64; 3], f64)>> {
        let took = self.0.elapsed().as_secs_f64();
        let now = Self::look(tessera).into_iter().zip(self.1);
        now.map(|(now, before)| {
            let (memory, time) = now?;
            let share = 100.0 * time.saturating_sub(before?).as_secs_f64() / took;
            Some((memory.map(|kib| kib as f64 / 1024.0), share))
        })
        .collect()
    }
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

async fn measure(tessera: &Tessera) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        without.push(start(tessera, &format!("plain-{round}"), &json!({})).await?);
        let limits = json!({ "nvidia.com/gpu": "2", "nvidia.com/gpumem": "8000" });
        with.push(start(tessera, &format!("gpu-{round}"), &limits).await?);
    }
    Ok((without, with))
}

/// Time from the event with the pod's node to the event with its running container.
async fn start(tessera: &Tessera, name: &str, limits: &Value) -> anyhow::Result<Duration> {
    let pods: Api<Pod> = Api::default_namespaced(tessera.cluster.client());
    let pod = serde_json::from_value(json!({ "metadata": { "name": name }, "spec": {
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": { "kubernetes.io/hostname": tessera.cluster.node },
        "containers": [{ "name": "main", "image": IMAGE, "command": ["sleep", "86400"],
            "resources": { "limits": limits } }] } }))?;
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = Box::pin(watcher(pods.clone(), only).applied_objects());
    pods.create(&PostParams::default(), &pod).await?;
    let mut bound = None;
    let took = async {
        while let Some(pod) = changes.try_next().await? {
            let node = daemon::pods::node(&pod).is_some();
            if node && bound.is_none() {
                bound = Some(Instant::now());
            }
            let statuses = pod.status.and_then(|status| status.container_statuses);
            let running = statuses
                .into_iter()
                .flatten()
                .any(|status| status.state.is_some_and(|state| state.running.is_some()));
            if let Some(bound) = bound.filter(|_| running) {
                return Ok::<_, anyhow::Error>(bound.elapsed());
            }
        }
        anyhow::bail!("the watch ended before pod {name} ran")
    };
    let took = tokio::time::timeout(Duration::from_mins(1), took)
        .await
        .map_err(|_| Error::Timeout {
            what: format!("pod {name} to run"),
            waited: Duration::from_mins(1),
        })?
        .context("watching the pod")?;
    if name != LASTING_POD {
        pods.delete(name, &DeleteParams::default()).await?;
    }
    Ok(took)
}
