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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    fn sources(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                sources(&path, text);
            } else if name.ends_with(".rs") {
                *text += &fs::read_to_string(path).unwrap();
            }
        }
    }

    /// docs/design.md, section 5, says which test shows what.
    #[test]
    fn every_test_that_the_design_names_is_there() {
        let mut text = String::new();
        sources(&crate::tessera::source("."), &mut text);
        let design = fs::read_to_string(crate::tessera::source("docs/design.md")).unwrap();
        let names = design
            .split('`')
            .filter(|word| word.matches('_').count() > 3);
        let names: Vec<_> = names
            .filter(|word| word.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()))
            .collect();
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            let is_there = text.contains(&format!("fn {name}("));
            assert!(
                is_there,
                "docs/design.md names {name}, but no test is called so"
            );
        }
    }
}
