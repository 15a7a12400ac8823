//! kubelet's sockets: device plugins register, and ask who holds which ids.

use std::{path::Path, sync::Arc};

use domain::demand::ContainerKind;
use nodeagent::kubelet::api::{
    device_plugin::{
        Empty, RegisterRequest,
        device_plugin_client::DevicePluginClient,
        registration_server::{Registration, RegistrationServer},
    },
    pod_resources::{
        AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
        ContainerResources, GetPodResourcesRequest, GetPodResourcesResponse,
        ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
        pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer},
    },
};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use super::{devices::Plugin, node::Node};

/// Serves both sockets of a node, for ever.
pub(super) async fn serve(node: Arc<Node>) -> anyhow::Result<()> {
    let registration = RegistrationServer::new(Service(node.clone()));
    let lister = PodResourcesListerServer::new(Service(node.clone()));
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

/// Dials a device plugin's socket.
pub(super) async fn dial(
    node: &Node,
    endpoint: &str,
) -> Result<DevicePluginClient<Channel>, String> {
    let socket = node.device_plugins().join(endpoint);
    let endpoint =
        Endpoint::try_from(format!("unix://{}", socket.display())).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
    Ok(DevicePluginClient::new(channel))
}

struct Service(Arc<Node>);

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument(format!(
                "version {}",
                request.version
            )));
        }
        let node = self.0.clone();
        // As kubelet: answered at once, dialled afterwards.
        tokio::spawn(async move {
            let resource = request.resource_name.clone();
            match follow(&node, request).await {
                Ok(()) => tracing::info!(node = node.name, resource, "The device plugin is gone"),
                Err(error) => tracing::warn!(node = node.name, resource, error, "Device plugin"),
            }
        });
        Ok(Response::new(Empty {}))
    }
}

/// Follows the devices of a plugin until its stream ends; then they are unhealthy.
async fn follow(node: &Node, request: RegisterRequest) -> Result<(), String> {
    let words = |status: Status| status.message().to_owned();
    let mut client = dial(node, &request.endpoint).await?;
    let options = client
        .get_device_plugin_options(Empty {})
        .await
        .map_err(words)?
        .into_inner();
    let mut stream = client
        .list_and_watch(Empty {})
        .await
        .map_err(words)?
        .into_inner();
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
    let set = |ids: Option<std::collections::BTreeMap<String, bool>>| {
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

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: self.pods(|_, _| true),
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let devices = self.0.with_devices(|devices| {
            devices
                .plugins
                .iter()
                .map(|(name, plugin)| ContainerDevices {
                    resource_name: name.clone(),
                    device_ids: plugin.ids.keys().cloned().collect(),
                    ..ContainerDevices::default()
                })
                .collect()
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices,
            ..AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let asked = request.into_inner();
        let found =
            self.pods(|namespace, name| namespace == asked.pod_namespace && name == asked.pod_name);
        match found.into_iter().next() {
            Some(pod) => Ok(Response::new(GetPodResourcesResponse {
                pod_resources: Some(pod),
            })),
            None => Err(Status::not_found("no such pod")),
        }
    }
}

impl Service {
    /// The pods with their containers' ids, without ordinary init containers.
    fn pods(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<PodResources> {
        self.0.with_devices(|devices| {
            let mut pods: Vec<PodResources> = Vec::new();
            for holding in &devices.held {
                let Some((namespace, name)) = &holding.pod else {
                    continue;
                };
                if holding.kind == Some(ContainerKind::Init) || !wanted(namespace, name) {
                    continue;
                }
                let at = pods
                    .iter()
                    .position(|p| p.namespace == *namespace && p.name == *name);
                let at = at.unwrap_or_else(|| {
                    pods.push(PodResources {
                        name: name.clone(),
                        namespace: namespace.clone(),
                        ..PodResources::default()
                    });
                    pods.len() - 1
                });
                pods[at].containers.push(ContainerResources {
                    name: holding.container.clone(),
                    devices: vec![ContainerDevices {
                        resource_name: holding.resource.clone(),
                        device_ids: holding.ids.iter().cloned().collect(),
                        ..ContainerDevices::default()
                    }],
                    ..ContainerResources::default()
                });
            }
            pods
        })
    }
}
