//! Why a CDI spec cannot be written.

use std::{io, path::PathBuf};

/// A spec that cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    /// A file of the driver in `/proc` does not have what a spec needs.
    #[error("{path} does not contain {what}")]
    MissingFact { path: PathBuf, what: String },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}
