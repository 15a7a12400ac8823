//! Taking a cluster down without a trace, and looking for traces.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    cluster::Record,
    error::{AtPath, Error},
    layout::{BRIDGE, CGROUP, DEVICE_PLUGIN_DIR, Layout, NETWORK},
    process::{Process, Processes, end},
    wait::until,
};

/// What kubelet, containerd and the CNI plugins write outside of the state directory, whatever they are told.
const OUTSIDE: [&str; 7] = [
    DEVICE_PLUGIN_DIR,
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/var/lib/cni",
    "/run/containerd",
    "/etc/cni",
];
/// How long processes may take to end.
const GRACE: Duration = Duration::from_secs(8);

/// Those of the paths outside of the state directory that are not there now.
pub(crate) fn absent() -> Vec<PathBuf> {
    OUTSIDE
        .iter()
        .map(PathBuf::from)
        .filter(|path| !path.exists())
        .collect()
}

/// Ends a cluster and removes all that it made. A state directory without a cluster is as well.
pub async fn down(dir: &Path) -> Result<(), Error> {
    let layout = Layout::new(dir);
    let record: Option<Record> = fs::read(layout.record())
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let Some(record) = record else {
        // Never a cluster, or one that was not made up to its record.
        return remove(&layout.dir);
    };
    // kubelet first, so that it starts nothing again; containerd's shims and containers are nobody's child.
    let processes = Processes::new(&layout);
    let own: Vec<Process> = processes
        .names()
        .iter()
        .filter_map(|name| processes.running(name))
        .collect();
    end(&own, GRACE).await;
    end_containers(&layout).await;
    end(&mentioning(&layout.dir), GRACE).await;
    if bridge_exists() {
        let _ = std::process::Command::new("ip")
            .args(["link", "delete", BRIDGE])
            .output();
    }
    clean_outside(&layout);
    for path in &record.absent {
        remove(path)?;
    }
    remove(&layout.dir)
}

/// Ends the containers and containerd's shims by SIGKILL, and removes their mounts and cgroups; kubelet and containerd
/// must have ended.
pub(crate) async fn end_containers(layout: &Layout) {
    let socket = layout.containerd_socket().display().to_string();
    // Shims first, so that nobody sees the containers end; they and the containers are nobody's child.
    let mut ours: Vec<Process> = mentioning(&layout.dir);
    ours.retain(|process| {
        let words = process.command_line();
        let shim = words.first().map(Path::new).and_then(Path::file_name);
        shim.is_some_and(|name| name == "containerd-shim-runc-v2") && words.contains(&socket)
    });
    ours.extend(cgroups(CGROUP).iter().flat_map(|cgroup| members(cgroup)));
    for process in &ours {
        process.signal(Signal::SIGKILL);
    }
    let _ = until("", GRACE, async || {
        let gone = ours.iter().all(|process| !process.is_alive());
        gone.then_some(())
    })
    .await;
    for mount in mounts(&layout.dir) {
        // A busy mount is detached: it goes with its last user.
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    let _ = until("", GRACE, async || {
        let left = cgroups(CGROUP);
        for cgroup in &left {
            remove_cgroup(cgroup);
        }
        cgroups(CGROUP).is_empty().then_some(())
    })
    .await;
    remove_dead_shim_sockets();
}

/// What a cluster in this directory has left on the machine, in words; empty after [`down`].
pub fn leftovers(dir: &Path) -> Vec<String> {
    let dir = Layout::new(dir).dir;
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

/// The files of ours in directories that others have too.
fn clean_outside(layout: &Layout) {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries(DEVICE_PLUGIN_DIR) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"].contains(&name.as_str())
            || name.starts_with("tessera-")
        {
            let _ = fs::remove_file(entry.path());
        }
    }
    for entry in entries("/var/log/containers") {
        let ours = fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&layout.dir));
        if ours {
            let _ = fs::remove_file(entry.path());
        }
    }
    for entry in entries("/var/lib/cni/results") {
        if entry.file_name().to_string_lossy().starts_with(NETWORK) {
            let _ = fs::remove_file(entry.path());
        }
    }
    remove_dead_shim_sockets();
    clean_clocks();
}

/// A shim that was killed leaves its socket; nobody listens there any more.
fn remove_dead_shim_sockets() {
    let entries = fs::read_dir("/run/containerd/s");
    for entry in entries.into_iter().flatten().flatten() {
        if std::os::unix::net::UnixStream::connect(entry.path()).is_err() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what libfaketime has left in shared memory for processes that were killed: the next process with such an id
/// would not start.
pub fn clean_clocks() {
    for path in dead_clocks() {
        let _ = fs::remove_file(path);
    }
}

/// libfaketime's semaphores and shared memory of processes that have ended.
fn dead_clocks() -> Vec<PathBuf> {
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

fn remove(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).at(path),
        Ok(_) => fs::remove_file(path).at(path),
    }
}

/// Processes whose arguments name something in the directory; not this one, nor those that started it.
fn mentioning(dir: &Path) -> Vec<Process> {
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
fn mounts(dir: &Path) -> Vec<PathBuf> {
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

fn bridge_exists() -> bool {
    Path::new("/sys/class/net").join(BRIDGE).exists()
}

/// The cgroups of that name: one in each hierarchy of version 1, or the one of version 2.
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

fn children(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
}

fn members(cgroup: &Path) -> Vec<Process> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let here = text
        .lines()
        .filter_map(|line| Process::of(line.parse().ok()?));
    here.chain(children(cgroup).flat_map(|child| members(&child)))
        .collect()
}

fn remove_cgroup(cgroup: &Path) {
    for child in children(cgroup) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}
