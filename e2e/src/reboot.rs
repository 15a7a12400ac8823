//! A node's reboot: what it loses, and what survives on its disks.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    cluster::component::Component,
    error::{AtPath, Error},
    machine::DEVICE_PLUGIN_DIR,
    teardown,
    tessera::{Tessera, agent},
    wait::until,
};

/// How long a program may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);

impl Tessera {
    /// Ends all of a node at once, as a power cut does.
    ///
    /// Lost are its processes (agent, kubelet, containerd, shims, containers), its GPU instances, on Hopper and
    /// later MIG mode, mounts, cgroups, and what lies in `/run` on a real machine: CDI specs, containerd's state,
    /// sockets. The agent's journal, kubelet's checkpoint, containerd's images and records stay. The bridge stays:
    /// a machine's network is up before kubelet.
    pub async fn power_off(&self, node: &str) -> Result<(), Error> {
        let (state_dir, processes) = (&self.cluster.state_dir, &self.cluster.processes);
        let real = node == self.cluster.node;
        let kubelet = self.kubelet(node);
        let mut names = vec![kubelet.as_str(), Component::Containerd.name()];
        let agent = agent(node);
        names.push(&agent);
        names.retain(|name| real || *name != Component::Containerd.name());
        for name in &names {
            if let Some(process) = processes.running(name) {
                process.signal(Signal::SIGKILL);
            }
        }
        for name in &names {
            processes.crash(name).await?;
        }
        if real {
            teardown::end_containers(state_dir).await;
            empty(&state_dir.containerd_state())?;
            empty(&state_dir.cdi())?;
            lose_sockets(Path::new(DEVICE_PLUGIN_DIR))?;
            lose_sockets(&state_dir.kubelet().join("pod-resources"))?;
        } else {
            let own = state_dir.hollow().join(node);
            empty(&own.join("containers"))?;
            empty(&own.join("cdi"))?;
            lose_sockets(&own.join("device-plugins"))?;
            lose_sockets(&own.join("pod-resources"))?;
        }
        let gpus = state_dir.gpus(node);
        nvml_sim::reboot(&gpus).at(&gpus)
    }

    /// Starts a node's programs as its init system does. The agent comes before kubelet: kubelet fails every pod
    /// with devices that it admits after a reboot before their plugin has registered.
    pub async fn power_on(&self, node: &str) -> Result<(), Error> {
        let processes = &self.cluster.processes;
        if node == self.cluster.node {
            processes.start_again(Component::Containerd.name())?;
            self.containerd_answers().await?;
        }
        processes.start_again(&agent(node))?;
        processes.start_again(&self.kubelet(node))?;
        Ok(())
    }

    /// Waits until containerd listens.
    pub async fn containerd_answers(&self) -> Result<(), Error> {
        let socket = self.cluster.state_dir.containerd_socket();
        until("containerd to listen", LISTEN_TIMEOUT, async || {
            UnixStream::connect(&socket).ok()
        })
        .await
        .map(drop)
    }
}

/// Removes what is in a directory; one that does not exist is empty.
fn empty(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().at(&path)?.is_dir();
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.at(&path)?;
    }
    Ok(())
}

fn lose_sockets(directory: &Path) -> Result<(), Error> {
    if directory.exists() {
        remove_sockets(directory).at(directory)?;
    }
    Ok(())
}

/// Removes the sockets in a directory.
pub(crate) fn remove_sockets(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
