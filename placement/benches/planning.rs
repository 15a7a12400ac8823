//! How long planning takes: one demand on one node, and filter and score of all nodes from a warm view.
//!
//! `items` are GPUs: the inverse of the throughput is the time per GPU.

use divan::{Bencher, counter::ItemsCount};
use domain::{config::Config, fixtures, fixtures::demand, mode::VgpuMode};
use placement::cluster::Cluster;

const GPUS: u32 = 8;

fn main() {
    divan::main();
}

/// Nodes of eight A100, about two thirds held by pods of all sizes.
fn cluster(nodes: usize) -> Cluster {
    let (mut cluster, config) = (Cluster::default(), Config::default());
    for number in 0..nodes {
        let name = format!("node-{number}");
        let status = fixtures::node(&name, &fixtures::a100_80gb(), GPUS, VgpuMode::Mig);
        cluster.apply_node(&name, status);
        for (pod, mib) in [9_000, 19_000, 40_000, 9_000]
            .repeat(5)
            .into_iter()
            .enumerate()
        {
            if let Ok(plan) = cluster.plan(&name, &demand(mib), &config) {
                cluster.apply_pod(&format!("{number}-{pod}"), &name, plan.claim);
            }
        }
    }
    cluster
}

#[divan::bench(args = [9_000, 40_000])]
fn plan_on_one_node(bencher: Bencher<'_, '_>, mib: u64) {
    let (cluster, config, demand) = (cluster(1), Config::default(), demand(mib));
    bencher
        .counter(ItemsCount::new(GPUS))
        .bench_local(|| cluster.plan("node-0", &demand, &config));
}

#[divan::bench(args = [1_000, 10_000], sample_count = 10)]
fn filter_and_score(bencher: Bencher<'_, '_>, nodes: usize) {
    let (cluster, config, demand) = (cluster(nodes), Config::default(), demand(9_000));
    let names: Vec<String> = cluster.nodes().map(|(name, _)| name.to_owned()).collect();
    bencher
        .counter(ItemsCount::new(nodes * GPUS as usize))
        .bench_local(|| {
            let names = names.iter().map(String::as_str);
            let fits = names.filter(|name| cluster.plan(name, &demand, &config).is_ok());
            cluster.rank(fits, &demand, &config)
        });
}
