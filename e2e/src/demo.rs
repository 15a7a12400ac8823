//! The whole product on one machine: a cluster, Tessera, three nodes with GPUs, and the examples.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use e2e::{
    cluster::Cluster,
    error::Error,
    programs::source,
    table,
    tessera::{Options, Tessera},
    wait::until,
};

/// Brings up what is not up yet, applies the examples and prints which pod has what.
pub(crate) async fn run(dir: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let step = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let tessera = match Cluster::attach(dir).await {
        Ok(cluster) => Tessera::attach(cluster),
        Err(Error::NoCluster(_)) => Tessera::up(dir, Options::default(), step).await?,
        Err(error) => return Err(error.into()),
    };
    let cluster = &tessera.cluster;
    let examples = source("e2e/examples");
    cluster
        .kubectl(&["apply", "--server-side", "-k", &examples.to_string_lossy()])
        .await?;
    let all_run = until("all examples to run", Duration::from_mins(1), async || {
        let rows = table::rows(cluster.client()).await.ok()?;
        let done = |row: &table::Row| row.phase == "Running" && !row.uuid.is_empty();
        (rows.len() >= 9 && rows.iter().all(done)).then_some(())
    });
    let result = all_run.await;
    if result.is_ok() {
        step("all examples are running");
    }
    let rows = table::rows(cluster.client()).await?;
    println!("\n{}\n", table::table(&rows));
    println!("{}", cluster.kubectl(&["get", "gpunodes"]).await?);
    println!("Look around: target/debug/tessera-e2e kubectl get pods");
    println!("End it:      target/debug/tessera-e2e down");
    Ok(result?)
}
