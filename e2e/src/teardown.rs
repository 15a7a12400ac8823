//! Taking a cluster down without a trace.

use std::{fs, path::Path};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    error::{AtPath, Error},
    leftovers::{bridge_exists, cgroups, children, dead_clocks, members, mentioning, mounts},
    machine::{BRIDGE, CGROUP, DEVICE_PLUGIN_DIR, NETWORK},
    process::{Process, TERMINATION_GRACE, end},
    processes::Processes,
    record::Record,
    state_dir::StateDir,
    wait::until,
};

/// Ends a cluster and removes all that it made. Without a cluster only the directory is removed.
pub async fn down(dir: &Path) -> Result<(), Error> {
    let state_dir = StateDir::new(dir);
    let record: Option<Record> = fs::read(state_dir.record())
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let Some(record) = record else {
        // Never a cluster, or one that was not made up to its record.
        return remove(&state_dir.dir);
    };
    // kubelet first, so that it starts nothing again; containerd's shims and containers are nobody's child.
    let processes = Processes::new(&state_dir);
    let own: Vec<Process> = processes
        .names()
        .iter()
        .filter_map(|name| processes.running(name))
        .collect();
    end(&own, TERMINATION_GRACE).await;
    end_containers(&state_dir).await;
    end(&mentioning(&state_dir.dir), TERMINATION_GRACE).await;
    if bridge_exists() {
        let _ = std::process::Command::new("ip")
            .args(["link", "delete", BRIDGE])
            .output();
    }
    clean_outside(&state_dir);
    for path in &record.absent {
        remove(path)?;
    }
    remove(&state_dir.dir)
}

/// Ends the containers and containerd's shims by SIGKILL, and removes their mounts and cgroups; kubelet and containerd
/// must have ended.
pub(crate) async fn end_containers(state_dir: &StateDir) {
    let socket = state_dir.containerd_socket().display().to_string();
    // Shims first, so that nobody sees the containers end; they and the containers are nobody's child.
    let mut ours: Vec<Process> = mentioning(&state_dir.dir);
    ours.retain(|process| {
        let words = process.command_line();
        let shim = words.first().map(Path::new).and_then(Path::file_name);
        shim.is_some_and(|name| name == "containerd-shim-runc-v2") && words.contains(&socket)
    });
    ours.extend(cgroups(CGROUP).iter().flat_map(|cgroup| members(cgroup)));
    for process in &ours {
        process.signal(Signal::SIGKILL);
    }
    let _ = until("", TERMINATION_GRACE, async || {
        let gone = ours.iter().all(|process| !process.is_alive());
        gone.then_some(())
    })
    .await;
    for mount in mounts(&state_dir.dir) {
        // A busy mount is detached: it goes with its last user.
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    let _ = until("", TERMINATION_GRACE, async || {
        let left = cgroups(CGROUP);
        for cgroup in &left {
            remove_cgroup(cgroup);
        }
        cgroups(CGROUP).is_empty().then_some(())
    })
    .await;
    remove_dead_shim_sockets();
}

/// Removes our files from directories that others use, too.
fn clean_outside(state_dir: &StateDir) {
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
        let ours = fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&state_dir.dir));
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

/// Removes the sockets on which nobody listens any more: a shim that was killed leaves its own.
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

fn remove(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).at(path),
        Ok(_) => fs::remove_file(path).at(path),
    }
}

fn remove_cgroup(cgroup: &Path) {
    for child in children(cgroup) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}
