//! A real control plane and kubelet on one machine, Tessera on it, and simulated GPUs below.
//!
//! Real are etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, containerd and
//! runc; simulated is only what is below NVML's C ABI. Everything lies in one state directory
//! ([`state_dir`]) and is found and ended by what is recorded there.

mod client;
pub mod cluster;
pub mod error;
pub mod hollow;
pub mod http;
pub mod image;
pub mod leftovers;
pub mod machine;
pub mod pki;
pub mod process;
pub mod processes;
pub mod programs;
mod reboot;
mod record;
pub mod state_dir;
pub mod table;
pub mod teardown;
pub mod tessera;
pub mod wait;
