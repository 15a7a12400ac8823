//! The webhook's certificate: made at first start, kept in a Secret, renewed, and told to the API server.

mod ca_bundle;
mod keep;
mod pair;

pub use crate::{
    keep::{Settings, keep},
    pair::{CertificateError, Pair},
};
