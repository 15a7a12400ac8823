//! `cluster.json`: what is needed to find a cluster again and to take it down.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The record of a cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of the real node.
    pub(crate) node: String,
    /// Paths outside of the state directory that the cluster adds: `down` removes them.
    pub(crate) absent: Vec<PathBuf>,
}
