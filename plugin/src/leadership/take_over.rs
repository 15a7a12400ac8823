//! What a plugin does before its first binding after another's: it makes that one's bindings void, and reads all claims.

use daemon::pods;
use domain::{demand::Demand, keys};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use tokio::task::JoinSet;

use crate::{
    binding::fence::{Fenced, fence},
    context::Context,
};

/// Pods per page of the list.
const PAGE: u32 = 500;
/// Number of pods that are changed at the same time.
const CONCURRENCY: usize = 16;

/// Reads the claims of all pods into the view; `with_fence`: and makes void what another plugin may still be sending.
pub(super) async fn take_over(context: &Context, with_fence: bool) -> kube::Result<()> {
    let api: Api<Pod> = Api::all(context.client.clone());
    // No resourceVersion: as etcd has it, not as some cache had it.
    let mut page = ListParams::default().limit(PAGE);
    let mut unbound = Vec::new();
    loop {
        let pods = api.list(&page).await?;
        for pod in pods.items {
            if pods::node(&pod).is_some() {
                context.adopt(&pod);
            } else if with_fence && may_be_bound_with_claim(context, &pod) {
                unbound.extend(pod.uid().map(|uid| (pods::name(&pod), uid)));
            }
        }
        match pods.metadata.continue_ {
            Some(token) if !token.is_empty() => page.continue_token = Some(token),
            _ => break,
        }
    }
    let mut fencing = JoinSet::new();
    for (name, uid) in unbound {
        if fencing.len() >= CONCURRENCY {
            finish(context, fencing.join_next().await)?;
        }
        let client = context.client.clone();
        fencing.spawn(async move { fence(&client, &name, &uid).await });
    }
    while let Some(done) = fencing.join_next().await {
        finish(context, Some(done))?;
    }
    Ok(())
}

fn finish(
    context: &Context,
    done: Option<Result<kube::Result<Fenced>, tokio::task::JoinError>>,
) -> kube::Result<()> {
    match done {
        Some(Ok(fenced)) => {
            if let Fenced::Bound(pod) = fenced? {
                context.adopt(&pod);
            }
            Ok(())
        }
        Some(Err(error)) => Err(kube::Error::Service(error.into())),
        None => Ok(()),
    }
}

/// Whether any plugin, with whatever settings, may bind the pod with a claim.
fn may_be_bound_with_claim(context: &Context, pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
    scheduler == Some(keys::SCHEDULER)
        || !matches!(Demand::read(&pods::request(pod), &context.config), Ok(None))
}
