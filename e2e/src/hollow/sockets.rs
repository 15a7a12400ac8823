//! kubelet's sockets.

use std::{path::Path, sync::Arc};

use nodeagent::kubelet::api::{
    device_plugin::registration_server::RegistrationServer,
    pod_resources::pod_resources_lister_server::PodResourcesListerServer,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{node::Node, plugins::PluginRegistration, pod_resources::AllocationLister};

/// Serves both sockets of a node, forever.
pub(super) async fn serve(node: Arc<Node>) -> anyhow::Result<()> {
    let registration = RegistrationServer::new(PluginRegistration(node.clone()));
    let lister = PodResourcesListerServer::new(AllocationLister(node.clone()));
    tokio::try_join!(
        Server::builder()
            .add_service(registration)
            .serve_with_incoming(listen(&node.kubelet_socket())?),
        Server::builder()
            .add_service(lister)
            .serve_with_incoming(listen(&node.pod_resources_socket())?),
    )?;
    Ok(())
}

fn listen(socket: &Path) -> std::io::Result<UnixListenerStream> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let _ = std::fs::remove_file(socket);
    Ok(UnixListenerStream::new(UnixListener::bind(socket)?))
}
