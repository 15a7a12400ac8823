//! What every verb and task of the plugin works with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::config::Config;
use kube::Client;

use crate::shared_cluster::SharedCluster;

/// What every verb and task of the plugin works with; a clone shares the same view.
#[derive(Clone)]
pub(crate) struct Context {
    /// The API server.
    pub(crate) client: Client,
    /// The view, with the claims that are assumed here.
    pub(crate) cluster: SharedCluster,
    /// The shared settings.
    pub(crate) config: Arc<Config>,
    /// When the process started: the zero of the clock of assumed claims.
    started: Instant,
}

impl Context {
    /// A context whose clock starts now.
    pub(crate) fn new(client: Client, cluster: SharedCluster, config: Arc<Config>) -> Self {
        Self {
            client,
            cluster,
            config,
            started: Instant::now(),
        }
    }

    /// Milliseconds since the start of the process, the clock of assumed claims.
    pub(crate) fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// The deadline of a claim that is assumed now and believed for `time` without being seen.
    pub(crate) fn deadline(&self, time: Duration) -> u64 {
        self.now() + millis(time)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
