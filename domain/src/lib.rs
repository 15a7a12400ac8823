//! The model of Tessera, and the only contract between its daemons. No I/O, no clock, no async, no logging.
//!
//! ```text
//! Pod ──► Demand ──► plan (crate placement) ──► Claim (annotation) ──► instances on the GPU
//!                          ▲                                               │
//!                       Cluster ◄────────────── GpuNodeStatus ◄────────────┘
//! ```
//!
//! Words: the memory of a GPU is cut into *slices*; a *profile* is a size of GPU instance that NVML
//! *offers* on the GPU at certain starts; a *slot* is GPU + profile + start, what should be; an
//! *instance* is what is; a *claim* is what a bound pod holds.

pub mod claim;
pub mod config;
pub mod demand;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod gpu;
pub mod keys;
pub mod mode;
pub mod pod;
pub mod quantity;
pub mod refusal;
pub mod request;
pub mod rule;
pub mod slices;
pub mod status;
mod summary;
