//! What the tests of the NVML thread share: pods with claims.

use std::{collections::BTreeMap, sync::Arc};

use domain::{claim::Claim, gpu::Offer, pod::PodName};
use nodeagent::gpus::claims::{ClaimedPod, ClaimedPods};

/// A claim of one container `main` on one instance.
pub(crate) fn claim(gpu: &str, offer: &Offer, start: u8) -> Claim {
    let device = serde_json::json!({ "mode": "mig", "gpu": gpu, "profile": offer.profile,
        "start": start, "size": offer.size, "mem": offer.memory_mib });
    let container = serde_json::json!({ "name": "main", "devices": [device] });
    serde_json::from_value(serde_json::json!({ "v": 1, "containers": [container] })).unwrap()
}

/// Pods with these claims, by UID.
pub(crate) fn pods<'a>(claims: impl IntoIterator<Item = (&'a str, &'a Claim)>) -> Arc<ClaimedPods> {
    let pods = claims.into_iter().map(|(uid, claim)| {
        let pod = ClaimedPod {
            uid: uid.to_owned(),
            name: PodName::new("default", uid),
            claim: claim.clone(),
            containers: BTreeMap::new(),
        };
        (uid.to_owned(), pod)
    });
    Arc::new(pods.collect())
}
