//! Registration with kubelet: serves the device plugin on a socket of its own, registers it, and does both again
//! whenever kubelet was restarted or the socket is gone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixListener, sync::watch, time::Instant};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    transport::{Endpoint, Server},
};

use crate::kubelet::{
    api::device_plugin::{
        Empty, RegisterRequest,
        device_plugin_server::{DevicePlugin, DevicePluginServer},
        registration_client::RegistrationClient,
    },
    client::Kubelet,
};

/// How often kubelet's socket and ours are checked.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long after a failure kubelet is tried again, unless its socket appears earlier.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Version of the device plugin API.
const API_VERSION: &str = "v1beta1";

/// Whether kubelet knows the devices. While it does not, it fails every pod that needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// The device plugin is not registered, or kubelet was restarted since.
    Missing,
    /// kubelet knows the devices.
    Registered,
    /// kubelet knows the devices, but the agent is about to end.
    Ending,
}

/// The current [`Registration`]: the device plugin and its loop write it, the publisher reads it.
#[derive(Clone, Debug)]
pub(crate) struct RegistrationState(watch::Sender<Registration>);

impl RegistrationState {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Registration::Missing))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Registration> {
        self.0.subscribe()
    }

    /// Changes the state. [`Registration::Ending`] is final.
    pub(crate) fn set(&self, to: Registration) {
        self.0.send_if_modified(|current| {
            let is_change = *current != Registration::Ending && *current != to;
            if is_change {
                *current = to;
            }
            is_change
        });
    }
}

/// Serves the device plugin and keeps it registered until `token` is cancelled.
pub(crate) async fn run(
    kubelet: Kubelet,
    service: impl DevicePlugin + Clone,
    state: RegistrationState,
    token: CancellationToken,
) {
    let sockets = Sockets::of(&kubelet);
    while !token.is_cancelled() {
        let stop = token.child_token();
        let ended = tokio::select! {
            () = token.cancelled() => Ok(()),
            ended = serve(&sockets.plugin, service.clone(), stop.clone()) => ended,
            ended = register_and_watch(&kubelet, &sockets, &service, &state) => ended,
        };
        stop.cancel();
        if let Err(error) = ended {
            tracing::warn!(
                error = format!("{error:#}"),
                "Cannot serve kubelet, trying again"
            );
            pause_before_retry(&sockets.kubelet, &token).await;
        }
    }
    let _ = std::fs::remove_file(&sockets.plugin);
}

/// The two sockets in kubelet's directory.
struct Sockets {
    /// Where kubelet serves registration.
    kubelet: PathBuf,
    /// Where the device plugin is served.
    plugin: PathBuf,
    /// File name of `plugin`.
    plugin_name: String,
}

impl Sockets {
    fn of(kubelet: &Kubelet) -> Self {
        let plugin_name = format!("tessera-{}.sock", kubelet.resource.replace('/', "-"));
        Self {
            kubelet: kubelet.directory.join("kubelet.sock"),
            plugin: kubelet.directory.join(&plugin_name),
            plugin_name,
        }
    }
}

async fn serve(
    socket: &Path,
    service: impl DevicePlugin,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // A socket that an earlier agent left behind cannot be bound.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    Server::builder()
        .add_service(DevicePluginServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
        .await?;
    Ok(())
}

/// Registers, and returns when kubelet has to be registered with again.
async fn register_and_watch(
    kubelet: &Kubelet,
    sockets: &Sockets,
    service: &impl DevicePlugin,
    state: &RegistrationState,
) -> anyhow::Result<()> {
    let kubelet_inode = inode(&sockets.kubelet);
    register(kubelet, sockets, service).await?;
    tracing::info!(resource = kubelet.resource, "Registered with kubelet");
    // When kubelet starts, it removes all sockets in its directory and creates its own again.
    while inode(&sockets.plugin).is_some() && inode(&sockets.kubelet) == kubelet_inode {
        tokio::time::sleep(SOCKET_CHECK_INTERVAL).await;
    }
    state.set(Registration::Missing);
    tracing::info!("kubelet was restarted");
    Ok(())
}

async fn register(
    kubelet: &Kubelet,
    sockets: &Sockets,
    service: &impl DevicePlugin,
) -> anyhow::Result<()> {
    let options = service
        .get_device_plugin_options(Request::new(Empty {}))
        .await?
        .into_inner();
    let channel = Endpoint::try_from(format!("unix://{}", sockets.kubelet.display()))?
        .connect()
        .await?;
    RegistrationClient::new(channel)
        .register(RegisterRequest {
            version: API_VERSION.to_owned(),
            endpoint: sockets.plugin_name.clone(),
            resource_name: kubelet.resource.clone(),
            options: Some(options),
        })
        .await?;
    Ok(())
}

/// Waits for [`RETRY_INTERVAL`], or less if kubelet starts meanwhile: it admits pods within a second of creating its
/// socket, and fails those whose device plugin it does not know.
async fn pause_before_retry(kubelet_socket: &Path, token: &CancellationToken) {
    let known = inode(kubelet_socket);
    let retry_at = Instant::now() + RETRY_INTERVAL;
    while Instant::now() < retry_at && inode(kubelet_socket) == known && !token.is_cancelled() {
        tokio::time::sleep(SOCKET_CHECK_INTERVAL).await;
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_about_to_end_is_not_registered_any_more() {
        let state = RegistrationState::new();
        let current = state.subscribe();
        for (set, then) in [
            (Registration::Registered, Registration::Registered),
            (Registration::Missing, Registration::Missing),
            (Registration::Ending, Registration::Ending),
            (Registration::Registered, Registration::Ending),
        ] {
            state.set(set);
            assert_eq!(*current.borrow(), then, "after {set:?}");
        }
    }
}
