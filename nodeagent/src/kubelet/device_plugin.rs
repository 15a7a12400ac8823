//! kubelet's device plugin service: offers device ids and prepares containers.
//!
//! The ids only stand for a count ([`device_ids`]): the pod's claim says which devices a container gets. `Allocate`
//! derives a CDI name from the ids and does nothing else, because an error there fails the pod for good. The work is
//! done in `PreStartContainer`, whose errors kubelet retries ([`prepare`](crate::kubelet::prepare)).

use std::{pin::Pin, sync::Arc};

use tokio::{sync::watch, time::Instant};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use crate::{
    gpus::inventory::Inventory,
    kubelet::{
        api::device_plugin::{
            AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
            DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
            PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
            device_plugin_server::DevicePlugin,
        },
        cdi::names,
        client::Kubelet,
        device_ids,
        id_holders::DeviceIds,
        prepare::Preparer,
        registration::{Registration, RegistrationState},
    },
    metrics::Metrics,
};

/// The service that kubelet calls.
#[derive(Clone)]
pub(crate) struct DevicePluginService {
    pub(crate) kubelet: Kubelet,
    /// Number of device ids offered per GPU.
    pub(crate) ids_per_gpu: u32,
    pub(crate) inventory: watch::Receiver<Arc<Inventory>>,
    pub(crate) preparer: Preparer,
    pub(crate) metrics: Metrics,
    pub(crate) registration: RegistrationState,
}

#[tonic::async_trait]
impl DevicePlugin for DevicePluginService {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {
            pre_start_required: true,
            get_preferred_allocation_available: false,
        }))
    }

    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.registration.set(Registration::Registered);
        let service = self.clone();
        let offers = WatchStream::new(self.inventory.clone()).then(move |inventory| {
            let service = service.clone();
            async move {
                let holders = service.kubelet.checkpointed_holders().await;
                let holders = holders.unwrap_or_default();
                device_ids::offered(&inventory, service.ids_per_gpu, &holders)
            }
        });
        // The inventory changes with every action; kubelet needs to hear of changed devices only.
        let mut last = None;
        let changes = offers.filter_map(move |devices| {
            let changed = last.as_ref() != Some(&devices);
            last = Some(devices.clone());
            changed.then_some(Ok(ListAndWatchResponse { devices }))
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented(
            "device ids are interchangeable: the pod's claim names the devices",
        ))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests.into_iter();
        let container_responses = containers
            .map(|container| ContainerAllocateResponse {
                cdi_devices: vec![CdiDevice {
                    name: names::qualified(&container.devices_ids.into_iter().collect()),
                }],
                ..ContainerAllocateResponse::default()
            })
            .collect();
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let started = Instant::now();
        let ids: DeviceIds = request.into_inner().devices_ids.into_iter().collect();
        let result = self.preparer.prepare(&ids).await;
        self.metrics
            .observe_preparation(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => Ok(Response::new(PreStartContainerResponse {})),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(
                    error,
                    "Cannot prepare a container yet, kubelet will ask again"
                );
                Err(Status::unavailable(error))
            }
        }
    }
}
