//! Finds out what became of bindings whose answer was unclear, and of pods that were bound and never seen.

use std::time::Duration;

use domain::pod::PodName;

use super::{
    fence::{Fenced, fence},
    pending::Exclusive,
};
use crate::{context::Context, leadership::term::UnderWay};

/// Time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Limit of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pod that was bound may stay unseen: longer than any watch lags.
const UNSEEN_TIMEOUT: Duration = Duration::from_mins(1);

/// Settles a binding whose answer was unclear: its claim is held until the pod shows what happened.
///
/// That a pod is not bound *yet* proves nothing, so the binding is made void first.
pub(super) async fn settle(
    context: Context,
    name: PodName,
    uid: String,
    exclusive: Exclusive,
    _under_way: UnderWay,
) {
    loop {
        match attempt(&context, &name, &uid).await {
            Some(Fenced::Bound(_)) => {
                tracing::info!(pod = %name, "The unclear binding was carried out");
                return exclusive.bound();
            }
            Some(Fenced::Unbound | Fenced::Gone) => {
                tracing::info!(pod = %name, "The unclear binding was not carried out");
                context.cluster.write().forget(&uid);
                return;
            }
            None => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// Looks after the pods that were bound and not seen for long: they may be gone while the watch was interrupted.
pub(crate) async fn check_unseen(context: &Context) {
    let unseen = {
        let cluster = context.cluster.read();
        let assumed = |uid: &str| cluster.is_assumed(uid);
        context.pending.unseen(UNSEEN_TIMEOUT, assumed)
    };
    for (uid, name) in unseen {
        let Some(exclusive) = context.pending.begin(&uid, name.clone()) else {
            continue;
        };
        match attempt(context, &name, &uid).await {
            Some(Fenced::Bound(pod)) if !daemon::pods::is_over(&pod) => exclusive.bound(),
            Some(_) => context.cluster.write().forget(&uid),
            None => exclusive.bound(),
        }
    }
}

async fn attempt(context: &Context, name: &PodName, uid: &str) -> Option<Fenced> {
    let fenced = fence(&context.client, name, uid);
    match tokio::time::timeout(ATTEMPT_TIMEOUT, fenced).await {
        Ok(Ok(fenced)) => Some(fenced),
        Ok(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(pod = %name, error, "Cannot find out whether a pod was bound, retrying");
            None
        }
        Err(_) => None,
    }
}
