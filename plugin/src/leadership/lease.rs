//! The Lease of the plugin that binds, changed by compare-and-swap alone.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::identity::Identity;

/// Name of the Lease.
const NAME: &str = "tessera-plugin";
/// How long others wait for a renewal before they take the Lease.
pub(super) const LEASE_DURATION: Duration = Duration::from_secs(8);
/// How long the holder believes that it holds the Lease, counted from the request that took or renewed it.
pub(super) const TERM_DURATION: Duration = Duration::from_secs(6);

/// Who has the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody, and whoever had it has no binding under way.
    Nobody,
    /// This process.
    Us,
    /// A process that is gone, or whose term is over; bindings of it may be under way.
    Former,
    /// Another process.
    Other(String),
}

/// Who has the Lease, which has been as it is for `unchanged`.
fn holder(lease: &Lease, identity: &Identity, unchanged: Duration) -> Holder {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    let seconds = u64::try_from(seconds.unwrap_or_default()).unwrap_or_default();
    let duration = LEASE_DURATION.max(Duration::from_secs(seconds));
    match holder {
        None | Some("") => Holder::Nobody,
        Some(holder) if holder == identity.to_string() => Holder::Us,
        Some(holder) if identity.is_predecessor(holder) || unchanged >= duration => Holder::Former,
        Some(holder) => Holder::Other(holder.to_owned()),
    }
}

/// The Lease as this process knows it.
pub(super) struct KnownLease {
    api: Api<Lease>,
    identity: Identity,
    known: Option<Lease>,
    /// Since when the Lease is known in its version.
    since: Instant,
    /// Whether nobody else has bound since the last term of this process: every version since is our own.
    continuous: bool,
}

impl KnownLease {
    pub(super) fn new(client: Client, namespace: &str, identity: Identity) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            known: None,
            since: Instant::now(),
            continuous: false,
        }
    }

    /// Who has the Lease as it is known; `None`: there is none, or nothing is known.
    pub(super) fn holder(&self) -> Option<Holder> {
        let lease = self.known.as_ref()?;
        Some(holder(lease, &self.identity, self.since.elapsed()))
    }

    /// Whether nobody else has bound since the last term of this process, if the Lease is as it is known.
    pub(super) fn is_continuous(&self) -> bool {
        self.continuous
    }

    /// A term of this process begins.
    pub(super) fn set_continuous(&mut self) {
        self.continuous = true;
    }

    /// Reads the Lease.
    pub(super) async fn read(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(NAME).await?;
        let version =
            |lease: &Option<Lease>| lease.as_ref().and_then(ResourceExt::resource_version);
        if version(&lease) != version(&self.known) {
            self.since = Instant::now();
            self.continuous = false;
        }
        self.known = lease;
        Ok(())
    }

    /// Takes or renews the Lease, if it is as it was known; returns until when the term holds.
    pub(super) async fn take(&mut self) -> kube::Result<Option<Instant>> {
        let until = Instant::now() + TERM_DURATION;
        let identity = self.identity.to_string();
        Ok(self.write(Some(identity)).await?.then_some(until))
    }

    /// Releases the Lease, if it is as it was known.
    pub(super) async fn release(&mut self) -> kube::Result<()> {
        self.write(None).await?;
        Ok(())
    }

    /// Writes the holder; false: the Lease is not as it was known, and is read at the next look.
    async fn write(&mut self, holder: Option<String>) -> kube::Result<bool> {
        let mut lease = self.known.clone().unwrap_or_default();
        let is_new = lease.metadata.name.is_none();
        lease.metadata.name = Some(NAME.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: holder,
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        let written = if is_new {
            self.api.create(&params, &lease).await
        } else {
            // With its resourceVersion: the API server refuses it where the Lease has changed.
            self.api.replace(NAME, &params, &lease).await
        };
        match written {
            Ok(lease) => {
                self.known = Some(lease);
                self.since = Instant::now();
                Ok(true)
            }
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {
                self.known = None;
                self.continuous = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 12: an earlier process of the same place is gone, another one has its time.
    #[test]
    fn a_lease_is_taken_from_one_that_is_gone_or_late_and_from_nobody_else() {
        let us = Identity::new("new", "pod-a");
        let lease = |identity: &str| Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(identity.to_owned()),
                lease_duration_seconds: Some(30),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        let seconds = Duration::from_secs;
        let other = Holder::Other("x@pod-b".to_owned());
        for (identity, unchanged, expected) in [
            ("", seconds(0), Holder::Nobody),
            ("new@pod-a", seconds(99), Holder::Us),
            ("old@pod-a", seconds(0), Holder::Former),
            ("x@pod-b", seconds(29), other),
            ("x@pod-b", seconds(30), Holder::Former),
        ] {
            assert_eq!(
                holder(&lease(identity), &us, unchanged),
                expected,
                "{identity}"
            );
        }
    }
}
