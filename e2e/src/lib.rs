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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use crate::programs::source;

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

    /// docs/design.md, section 5, names the test of every promise.
    #[test]
    fn every_test_that_the_design_names_is_there() {
        let mut text = String::new();
        sources(&source("."), &mut text);
        let design = fs::read_to_string(source("docs/design.md")).unwrap();
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
