//! Processes of the host, read from its `/proc`: whether a pod still has some, and the name of one.

use std::path::Path;

/// Whether a pod still has a process, even if the pod is gone from the API server: a container that kubelet or the
/// runtime has not ended yet could open its device nodes.
///
/// kubelet names a pod's control group `pod<UID>`, and the systemd driver replaces `-` by `_`.
pub(crate) fn has_processes(proc: &Path, uid: &str) -> bool {
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cgroup")).ok())
        .any(|groups| names.iter().any(|name| groups.contains(name)))
}

/// The command of a process; empty when it is gone.
pub(crate) fn command(proc: &Path, pid: u32) -> String {
    let text = std::fs::read_to_string(proc.join(pid.to_string()).join("comm"));
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_processes_are_found_under_both_cgroup_drivers() {
        let proc = tempfile::tempdir().unwrap();
        let group = |pid: &str, text: &str| {
            let dir = proc.path().join(pid);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("cgroup"), text).unwrap();
        };
        group("self", "0::/kubepods/podself/x\n");
        group("1", "0::/init.scope\n");
        group(
            "7",
            "4:memory:/kubepods/burstable/poda-1/9f\n0::/kubepods/poda-1/9f\n",
        );
        group(
            "8",
            "0::/kubepods.slice/kubepods-podb_2.slice/cri-containerd-9f.scope\n",
        );
        let runs = |uid| has_processes(proc.path(), uid);
        assert!(runs("a-1") && runs("b-2"));
        assert!(!runs("c-3") && !runs("self"));
        assert!(!has_processes(Path::new("/nonexistent"), "a-1"));
    }
}
