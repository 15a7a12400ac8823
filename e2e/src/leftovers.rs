//! What a cluster leaves on its machine, inside and outside of the state directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    machine::{BRIDGE, CGROUP, DEVICE_PLUGIN_DIR},
    process::Process,
    state_dir::StateDir,
};

/// What kubelet, containerd and the CNI plugins write outside of the state directory, whatever their configuration says.
const OUTSIDE: [&str; 7] = [
    DEVICE_PLUGIN_DIR,
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/var/lib/cni",
    "/run/containerd",
    "/etc/cni",
];

/// Those of the paths outside of the state directory that are not there now.
pub(crate) fn absent() -> Vec<PathBuf> {
    OUTSIDE
        .iter()
        .map(PathBuf::from)
        .filter(|path| !path.exists())
        .collect()
}

/// What a cluster in this directory has left on the machine, one sentence each; empty after [`crate::teardown::down`].
pub fn find(dir: &Path) -> Vec<String> {
    let dir = StateDir::new(dir).dir;
    let mut found = Vec::new();
    for process in mentioning(&dir) {
        let line = process.command_line().join(" ");
        found.push(format!("process {}: {line}", process.pid));
    }
    found.extend(
        mounts(&dir)
            .iter()
            .map(|path| format!("mount {}", path.display())),
    );
    if bridge_exists() {
        found.push(format!("network interface {BRIDGE}"));
    }
    found.extend(
        cgroups(CGROUP)
            .iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    let paths = [
        dir.clone(),
        Path::new(DEVICE_PLUGIN_DIR).join("kubelet.sock"),
    ];
    let existing = paths.into_iter().filter(|path| path.exists());
    found.extend(
        existing
            .chain(dead_clocks())
            .map(|path| format!("path {}", path.display())),
    );
    found
}

/// libfaketime's semaphores and shared memory of processes that have ended.
pub(crate) fn dead_clocks() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let dead = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = ["faketime_shm_", "sem.faketime_sem_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix)?.parse().ok());
        pid.is_some_and(|pid| Process::of(pid).is_none())
    });
    dead.map(|entry| entry.path()).collect()
}

/// Processes whose arguments name something in the directory; not this one, nor those that started it.
pub(crate) fn mentioning(dir: &Path) -> Vec<Process> {
    let dir = format!("{}/", dir.display());
    let mut ours = Vec::new();
    let mut pid = nix::unistd::getpid().as_raw();
    while pid > 1 {
        ours.push(pid);
        pid = parent(pid).unwrap_or(0);
    }
    Process::all()
        .into_iter()
        .filter(|process| !ours.contains(&process.pid))
        .filter(|process| {
            process
                .command_line()
                .iter()
                .any(|word| word.contains(&dir))
        })
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Mount points in the directory, the innermost first.
pub(crate) fn mounts(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.reverse();
    found
}

pub(crate) fn bridge_exists() -> bool {
    Path::new("/sys/class/net").join(BRIDGE).exists()
}

/// The cgroups of that name: one per hierarchy of version 1, or the one of version 2.
pub(crate) fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = std::iter::once(root.to_owned())
        // Names like cpu → cpu,cpuacct are links to one hierarchy.
        .chain(
            hierarchies
                .map(|e| e.path())
                .filter(|path| !path.is_symlink()),
        )
        .map(|hierarchy| hierarchy.join(name))
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    found.dedup();
    found
}

pub(crate) fn children(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
}

pub(crate) fn members(cgroup: &Path) -> Vec<Process> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let here = text
        .lines()
        .filter_map(|line| Process::of(line.parse().ok()?));
    here.chain(children(cgroup).flat_map(|child| members(&child)))
        .collect()
}
