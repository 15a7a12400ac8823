//! The NVML thread over the simulated `libnvidia-ml.so.1`: faults, modes, resets, reboots, calls that hang.
#![allow(clippy::unwrap_used, reason = "tests and what they share")]

mod driver;
mod faults;
mod instances;
mod modes;
mod odd_gpus;
mod processes;
#[path = "../support/mod.rs"]
mod support;
mod world;
