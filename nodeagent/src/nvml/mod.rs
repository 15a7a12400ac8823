//! NVML behind safe verbs: survey, create, destroy, mode. The only `unsafe` of the product.
//!
//! nvml-wrapper loads the library and wraps what it knows; the GPU instance calls go to the raw
//! symbols, because the wrapper has none (and its `possible_placements` is always empty).
//! Everything here blocks and belongs on the one thread that owns the library; only the wait for
//! faults (`fault_watch`) has a thread and a session of its own.
#![allow(unsafe_code, reason = "NVML is a C library")]

pub mod data;
pub(crate) mod error;
pub(crate) mod fault_watch;
mod health;
mod instance;
mod mode;
mod numa;
mod processes;
mod profile;
pub(crate) mod session;
pub(crate) mod survey;
