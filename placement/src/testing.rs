//! Clusters for tests.

use domain::{claim::Claim, demand::Demand, fixtures, mode::VgpuMode};

use crate::cluster::Cluster;

/// One MIG device of at least so many MiB.
pub(crate) fn one(mib: u64) -> Demand {
    Demand {
        mode: Some(VgpuMode::Mig),
        ..fixtures::demand(mib)
    }
}

/// A claim of one instance.
fn at(profile: &str, gpu: &str, start: u8) -> Claim {
    let model = fixtures::a100_80gb();
    let offer = model.offer(profile).unwrap();
    serde_json::from_value(serde_json::json!({ "v": 1, "containers": [{ "name": "c", "devices": [{
        "mode": "mig", "gpu": gpu, "profile": profile, "start": start, "size": offer.size, "mem": offer.memory_mib }] }] }))
    .unwrap()
}

/// A node `n` of 80 GB A100, with pods: UID, profile, GPU, start.
pub(crate) fn cluster(claims: &[(&str, &str, u32, u8)], cards: u32) -> Cluster {
    let mut cluster = Cluster::default();
    let node = fixtures::node("n", &fixtures::a100_80gb(), cards, VgpuMode::Mig);
    cluster.apply_node("n", node);
    for (uid, profile, card, start) in claims {
        cluster.apply_pod(uid, "n", at(profile, &format!("GPU-n-{card}"), *start));
    }
    cluster
}
