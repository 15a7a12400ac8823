//! The task that takes, renews and releases the Lease.

use std::time::{Duration, Instant};

use daemon::shutdown::CancellationToken;

use super::{
    identity::Identity,
    lease::{Holder, KnownLease},
    take_over::take_over,
};
use crate::context::Context;

/// Time between two renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two looks at a Lease that another plugin holds.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Limit of one request for the Lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long bindings that are under way may take when the process ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Where the Lease is, and who takes it.
pub(crate) struct LeaseSettings {
    /// Namespace of the Lease.
    pub(crate) namespace: String,
    /// This process.
    pub(crate) identity: Identity,
}

/// Holds the Lease while bindings need it, until the token fires; then releases it.
pub(crate) async fn run(
    context: Context,
    settings: LeaseSettings,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let LeaseSettings {
        namespace,
        identity,
    } = settings;
    let lease = KnownLease::new(context.client.clone(), &namespace, identity);
    let mut keeper = Keeper { context, lease };
    while !token.is_cancelled() {
        let again = keeper.step().await;
        let leadership = &keeper.context.leadership;
        tokio::select! {
            () = leadership.changed() => {}
            () = tokio::time::sleep(again) => {}
            () = token.cancelled() => {}
        }
    }
    keeper.drain().await;
    Ok(())
}

struct Keeper {
    context: Context,
    lease: KnownLease,
}

impl Keeper {
    /// Takes, renews or releases the Lease; returns when to look again.
    async fn step(&mut self) -> Duration {
        let wanted = self.context.leadership.is_wanted();
        let ours = self.lease.holder() == Some(Holder::Us);
        let done = match (wanted, ours) {
            (true, _) => self.hold().await,
            (false, true) => self.release().await,
            (false, false) => Ok(()),
        };
        if let Err(error) = done {
            self.context
                .leadership
                .set_obstacle(format!("cannot take the lease: {error}"));
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "Cannot take or renew the lease, retrying");
            return LOOK_INTERVAL;
        }
        if wanted && self.context.leadership.term().is_none() {
            LOOK_INTERVAL
        } else {
            RENEW_INTERVAL
        }
    }

    async fn hold(&mut self) -> kube::Result<()> {
        let leadership = self.context.leadership.clone();
        if self.lease.is_continuous() {
            return self.renew().await;
        }
        in_time(self.lease.read()).await?;
        let fence = match self.lease.holder() {
            // Ours, but the term did not begin, or it is not known whose the Lease was in between.
            None | Some(Holder::Us | Holder::Former) => true,
            Some(Holder::Nobody) => false,
            Some(Holder::Other(other)) => {
                let process = other.split('@').next().unwrap_or(&other);
                leadership.set_obstacle(format!("another plugin is binding: {process}"));
                return Ok(());
            }
        };
        if in_time(self.lease.take()).await?.is_none() {
            return Ok(());
        }
        let began = Instant::now();
        let Some(until) = self.take_over(fence).await? else {
            return Ok(());
        };
        self.lease.set_continuous();
        leadership.extend(until, true);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(fence, seconds, "Took the lease, binding from now on");
        Ok(())
    }

    /// Takes over while the Lease is renewed; returns until when the term holds, `None` where the Lease was lost.
    async fn take_over(&mut self, fence: bool) -> kube::Result<Option<Instant>> {
        let context = self.context.clone();
        let taking_over = take_over(&context, fence);
        tokio::pin!(taking_over);
        loop {
            tokio::select! {
                done = &mut taking_over => {
                    done?;
                    // Nobody has taken it meanwhile.
                    return in_time(self.lease.take()).await;
                }
                () = tokio::time::sleep(RENEW_INTERVAL) => {
                    if in_time(self.lease.take()).await?.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Goes on with the term, or with one that begins without anybody else's in between.
    async fn renew(&mut self) -> kube::Result<()> {
        match in_time(self.lease.take()).await? {
            Some(until) => self.context.leadership.extend(until, false),
            None => self.context.leadership.end(),
        }
        Ok(())
    }

    async fn release(&mut self) -> kube::Result<()> {
        // Before the request: no binding is sent after it.
        self.context.leadership.end();
        // One that began meanwhile has its pod read and its claim planned in a term that is over.
        if self.context.leadership.is_busy() {
            return Ok(());
        }
        in_time(self.lease.release()).await
    }

    /// Waits for the bindings that are under way, and releases the Lease; where they take longer it runs out.
    async fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.context.leadership.is_busy() && Instant::now() < deadline {
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.context.leadership.changed()).await;
        }
        if self.lease.holder() == Some(Holder::Us)
            && !self.context.leadership.is_busy()
            && let Err(error) = in_time(self.lease.release()).await
        {
            tracing::warn!(%error, "Cannot release the lease, others wait until it runs out");
        }
    }
}

/// A request with a time limit of its own, shorter than the term.
async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(
            "timed out waiting for the API server".into(),
        )),
    }
}
