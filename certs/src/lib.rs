//! The webhook's certificate: created at first start, stored in a Secret, rotated, and published as `caBundle`.
//!
//! [`rotate`] is the loop; `secret` reads and writes what the replicas share; `pair` creates and
//! judges certificates; `ca_bundle` computes the patch for the API server.

mod ca_bundle;
mod pair;
pub mod rotate;
mod secret;
pub mod settings;
