//! The placement engine: which GPU, which profile and which start for every device of a pod. Pure, as the model is.
//!
//! ```text
//! simulation ──► preemption, relocation ──► ranking ──► cluster ──► node_cards ──► weights ─┐
//!                                              └──► plan ───────────────┴────────► card ──► potential ──► layouts, mix
//! ```
//!
//! A *card* is the planner's view of one GPU: what it offers, and what is held of it.

pub mod card;
pub mod cluster;
pub mod layouts;
pub mod mix;
mod node_cards;
pub mod plan;
pub mod potential;
pub mod preemption;
#[cfg(test)]
mod properties;
pub mod ranking;
pub mod relocation;
pub mod rule;
pub mod simulation;
mod subsets;
#[cfg(test)]
mod testing;
mod weights;
