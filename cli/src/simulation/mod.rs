//! Simulates pods that arrive, wait, run and leave, and reports what became of each.

mod explain;
pub mod report;
mod table;
mod usage;
pub mod world;
