//! The exported C symbols, by NVML's chapters: each finds its GPU and instance, and leaves the rules to `gpu`.
#![allow(unsafe_code, reason = "a C ABI")]
#![allow(non_snake_case, unreachable_pub, reason = "names of NVML")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each symbol is NVML's header: valid pointers or null"
)]

mod access;
mod call;
mod compute_instance;
mod declare;
mod device;
mod event;
mod gpu_instance;
mod handle;
mod health;
mod mig;
mod out;
mod process;
mod session;
