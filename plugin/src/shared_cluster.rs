//! The view of the cluster that watches write and planning reads.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use domain::rule::Rule;
use placement::cluster::Cluster;

/// A [`Cluster`] that tasks share; hold its locks for computations only, never over an `await`.
#[derive(Clone, Debug, Default)]
pub struct SharedCluster(Arc<RwLock<Cluster>>);

impl SharedCluster {
    /// An empty view whose placements are scored by that rule.
    pub fn new(rule: Rule) -> Self {
        let shared = Self::default();
        shared.write().set_rule(rule);
        shared
    }

    /// Locks the view for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Cluster> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the view for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, Cluster> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
