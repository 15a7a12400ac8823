//! The model of Tessera, and the only contract between its daemons. No I/O, no clock, no async, no logging.
//!
//! ```text
//! Pod ──► Demand ──► plan(cards of a node) ──► Claim (annotation) ──► instances on the card
//!                          ▲                                               │
//!                       Cluster ◄────────────── GpuNodeStatus ◄────────────┘
//! ```
//!
//! Words: a *card* is a GPU; its memory is cut into *slices*; a *profile* is a size of GPU instance
//! that NVML *offers* on the card at certain starts; a *slot* is card + profile + start, what should
//! be; an *instance* is what is; a *claim* is what a bound pod holds.

mod card;
pub mod churn;
mod claim;
mod cluster;
mod config;
mod demand;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod fleet;
mod gpu;
pub mod keys;
mod layouts;
mod mode;
mod placement;
mod potential;
#[cfg(test)]
mod properties;
mod refusal;
pub mod repack;
mod room;
mod slices;
mod status;
mod tuning;

pub use card::Card;
pub use claim::{Claim, ClaimError, ClaimedDevice, ContainerClaim, Share, ShareUse, Slot};
pub use cluster::{About, Choice, Cluster, PodUid};
pub use config::{
    Config, DeviceMode, FilterDevices, Geometry, GeometryInstances, KnownGeometries, NodeConfig,
    Placement,
};
pub use demand::{
    CardSelector, ContainerDemand, ContainerKind, ContainerRequest, Demand, DemandError, Memory,
    PodRequest, Policy,
};
pub use fleet::{Fleet, Move, Placed, Rule, UnknownRule, is_calm};
pub use gpu::{Gpu, Instance, InstanceState, Model, Offer};
pub use layouts::{Layouts, StateId, WindowId};
pub use mode::{NodeMode, UnknownMode, UnknownNodeMode, VgpuMode};
pub use placement::{Plan, Suitability, plan};
pub use potential::{Mix, Parameters, Potential, Weighing};
pub use refusal::{Needs, Refusal};
pub use room::{Room, Victim, room, victims};
pub use slices::Slices;
pub use status::{Condition, GpuNodeStatus, REGISTERED};
pub use tuning::tune;
