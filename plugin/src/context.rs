//! What every verb and task of the plugin works with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::{pods, shutdown::CancellationToken};
use domain::config::Config;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};

use crate::{
    binding::pending::PendingBindings, leadership::term::Leadership, shared_cluster::SharedCluster,
};

/// What every verb and task of the plugin works with; a clone shares the same view.
#[derive(Clone)]
pub(crate) struct Context {
    /// The API server.
    pub(crate) client: Client,
    /// The view, with the claims that are assumed here.
    pub(crate) cluster: SharedCluster,
    /// The shared settings.
    pub(crate) config: Arc<Config>,
    /// Whether this plugin binds, rather than another one.
    pub(crate) leadership: Leadership,
    /// The bindings that are not over.
    pub(crate) pending: PendingBindings,
    /// When the process started: the zero of the clock of reservations.
    started: Instant,
}

impl Context {
    /// A context whose clock starts now, and which binds nothing once the token has fired.
    pub(crate) fn new(
        client: Client,
        cluster: SharedCluster,
        config: Arc<Config>,
        token: CancellationToken,
    ) -> Self {
        Self {
            client,
            cluster,
            config,
            leadership: Leadership::new(token),
            pending: PendingBindings::default(),
            started: Instant::now(),
        }
    }

    /// Milliseconds since the start of the process, the clock of reservations.
    pub(crate) fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// The deadline of a reservation that is made now for so long.
    pub(crate) fn deadline(&self, time: Duration) -> u64 {
        self.now() + millis(time)
    }

    /// Takes the claim of a pod that another plugin has bound into the view, until the watch shows it.
    pub(crate) fn adopt(&self, pod: &Pod) {
        let (Some(uid), Some(node), Some(Ok(claim))) =
            (pod.uid(), pods::node(pod), pods::claim(pod))
        else {
            return;
        };
        let mut cluster = self.cluster.write();
        if pods::is_over(pod) {
            return;
        }
        cluster.assume(&uid, node, claim);
        drop(cluster);
        self.pending.insert_bound(&uid, pods::name(pod));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
