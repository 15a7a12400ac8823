//! Device plugins: they register, and their devices are watched.

use std::{collections::BTreeMap, sync::Arc};

use nodeagent::kubelet::api::device_plugin::{
    Empty, RegisterRequest, device_plugin_client::DevicePluginClient,
    registration_server::Registration,
};
use tokio_stream::StreamExt;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{devices::Plugin, node::Node};

/// A device plugin cannot be called, or refused a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    /// None has registered for this resource.
    #[error("no device plugin for {0}")]
    NotRegistered(String),
    /// Its socket does not answer.
    #[error(transparent)]
    Connect(#[from] tonic::transport::Error),
    /// It answered with an error.
    #[error("{}", .0.message())]
    Call(#[from] Status),
}

/// Connects to a device plugin's socket.
pub(super) async fn dial(
    node: &Node,
    endpoint: &str,
) -> Result<DevicePluginClient<Channel>, PluginError> {
    let socket = node.device_plugins().join(endpoint);
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
    Ok(DevicePluginClient::new(endpoint.connect().await?))
}

/// The service with which device plugins register.
pub(super) struct PluginRegistration(pub(super) Arc<Node>);

#[tonic::async_trait]
impl Registration for PluginRegistration {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument(format!(
                "version {} is not supported",
                request.version
            )));
        }
        let node = self.0.clone();
        // As kubelet does: answered at once, connected afterwards.
        tokio::spawn(async move {
            let resource = request.resource_name.clone();
            match watch_devices(&node, request).await {
                Ok(()) => tracing::info!(node = node.name, resource, "The device plugin is gone"),
                Err(error) => {
                    tracing::warn!(node = node.name, resource, %error, "Cannot watch the device plugin");
                }
            }
        });
        Ok(Response::new(Empty {}))
    }
}

/// Takes over the devices of a plugin until its stream ends; then they are unhealthy.
async fn watch_devices(node: &Node, request: RegisterRequest) -> Result<(), PluginError> {
    let mut client = dial(node, &request.endpoint).await?;
    let options = client
        .get_device_plugin_options(Empty {})
        .await?
        .into_inner();
    let mut stream = client.list_and_watch(Empty {}).await?.into_inner();
    let resource = request.resource_name;
    let registration = node.with_devices(|devices| {
        let before = devices.plugins.get(&resource);
        let registration = before.map_or(0, |plugin| plugin.registration + 1);
        let plugin = Plugin {
            endpoint: request.endpoint,
            pre_start: options.pre_start_required,
            ids: before.map(|plugin| plugin.ids.clone()).unwrap_or_default(),
            registration,
        };
        devices.plugins.insert(resource.clone(), plugin);
        registration
    });
    let set = |ids: Option<BTreeMap<String, bool>>| {
        node.with_devices(|devices| {
            let plugin = devices.plugins.get_mut(&resource);
            if let Some(plugin) = plugin.filter(|plugin| plugin.registration == registration) {
                match ids {
                    Some(ids) => plugin.ids = ids,
                    None => plugin.ids.values_mut().for_each(|healthy| *healthy = false),
                }
            }
        });
        node.changed.notify_one();
    };
    while let Some(Ok(answer)) = stream.next().await {
        let devices = answer.devices.into_iter();
        set(Some(
            devices
                .map(|device| (device.id, device.health == "Healthy"))
                .collect(),
        ));
    }
    set(None);
    Ok(())
}
