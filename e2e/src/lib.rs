//! A real control plane and kubelet on one machine, Tessera on it, and simulated GPUs below.
//!
//! Real are etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, containerd and
//! runc; simulated is only what is below NVML's C ABI. Everything lies in one state directory
//! ([`layout`]) and is found and ended by what is recorded there.

pub mod cluster;
pub mod error;
pub mod hollow;
pub mod image;
pub mod layout;
mod leftovers;
pub mod pki;
pub mod process;
mod reboot;
pub mod table;
pub mod tessera;
pub mod wait;

pub use cluster::{Cluster, Component};
pub use error::Error;
pub use leftovers::{clean_clocks, down, leftovers};
pub use tessera::{GpuNodeSpec, Options, Tessera};
