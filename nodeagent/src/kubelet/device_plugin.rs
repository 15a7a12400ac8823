//! kubelet's device plugin service: device ids out, containers prepared.
//!
//! The ids stand for a count (`devices`): which instance a container gets is in its pod's claim.
//! `Allocate` only derives a CDI name from the ids, because an error there fails the pod for good;
//! `PreStartContainer`, whose errors kubelet retries, finds out whose the ids are and waits for the devices.

use std::{path::PathBuf, pin::Pin, time::Duration};

use domain::{
    claim::{ClaimedDevice, Share},
    mode::VgpuMode,
};
use tokio::{net::UnixListener, sync::watch, time::Instant};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{UnixListenerStream, WatchStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};

use crate::{
    gpus::inventory::Inventory,
    kubelet::api::{
        device_plugin::{
            AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
            DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
            PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
            RegisterRequest,
            device_plugin_server::{DevicePlugin, DevicePluginServer},
            registration_client::RegistrationClient,
        },
        pod_resources::{
            ListPodResourcesRequest, pod_resources_lister_client::PodResourcesListerClient,
        },
    },
    kubelet::cdi::{self, Cdi},
    kubelet::checkpoint,
    kubelet::device_ids::{self, DeviceIds, Holding, PodName, Served},
    kubelet::devices,
    materialise::thread::NvmlThread,
    metrics::Metrics,
    pods::Pods,
};

/// kubelet gives `PreStartContainer` 30 s; what is not there by then is asked for again.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often kubelet's and our sockets are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Version of the device plugin API.
const VERSION: &str = "v1beta1";

/// Where kubelet is and what we are to it.
#[derive(Clone, Debug)]
pub struct Kubelet {
    /// Directory of device plugin sockets, `kubelet.sock` among them.
    pub directory: PathBuf,
    /// Socket of the `PodResources` service.
    pub pod_resources: PathBuf,
    /// The resource that we provide.
    pub resource: String,
    /// Device ids a card.
    pub shares: u32,
}

/// Whether kubelet knows the devices: pods that come to it while it does not are failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Not yet, or not any more since it was restarted.
    Missing,
    /// It does.
    Done,
    /// It does for a moment: the agent is about to end.
    Ends,
}

/// The service.
#[derive(Clone)]
pub struct Plugin {
    /// Where kubelet is.
    pub kubelet: Kubelet,
    /// The cards.
    pub nvml: NvmlThread,
    /// The pods.
    pub pods: watch::Receiver<Pods>,
    /// CDI specs.
    pub cdi: Cdi,
    /// Durations.
    pub metrics: Metrics,
    /// Whether kubelet knows the devices.
    pub registration: watch::Sender<Registration>,
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.registered(Registration::Done);
        let plugin = self.clone();
        let offers = WatchStream::new(self.nvml.inventory()).then(move |inventory| {
            let plugin = plugin.clone();
            async move {
                let holdings = plugin.checkpoint().await.unwrap_or_default();
                devices::devices(&inventory, plugin.kubelet.shares, &holdings)
            }
        });
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
            "the ids stand for a count; the claim says which devices",
        ))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let container_responses = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|container| ContainerAllocateResponse {
                cdi_devices: vec![CdiDevice {
                    name: cdi::qualified(&container.devices_ids.into_iter().collect()),
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
        let result = self.prepare(&ids).await;
        self.metrics.prepared(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => Ok(Response::new(PreStartContainerResponse {})),
            Err(words) => {
                tracing::warn!(words, "A container has to wait");
                Err(Status::unavailable(words))
            }
        }
    }
}

fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: false,
    }
}

impl Plugin {
    fn registered(&self, to: Registration) {
        self.registration.send_if_modified(|now| {
            let is_new = *now != Registration::Ends && *now != to;
            if is_new {
                *now = to;
            }
            is_new
        });
    }

    /// Finds whose the ids are, waits for the devices, writes the CDI spec.
    async fn prepare(&self, ids: &DeviceIds) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut pods = self.pods.clone();
        let (uid, container) = loop {
            let Some(known) = pods.borrow_and_update().clone() else {
                if self.serves_as_before(ids).await? {
                    return Ok(());
                }
                if tokio::time::timeout_at(deadline, pods.changed())
                    .await
                    .is_err()
                {
                    return Err("the API server has not told this node's pods yet".to_owned());
                }
                continue;
            };
            let holdings = self.holdings().await?;
            match device_ids::resolve(ids, &holdings, &known, self.cdi.served(ids).as_ref()) {
                device_ids::Owner::Container { uid, container } => break (uid, container),
                device_ids::Owner::Nobody
                    if Instant::now() + Duration::from_secs(20) < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                device_ids::Owner::Nobody => {
                    return Err("kubelet names no container of a pod with a Tessera claim for these device ids; \
                        was the pod scheduled by tessera-scheduler?"
                        .to_owned());
                }
                device_ids::Owner::NotYet(words) => {
                    if tokio::time::timeout_at(deadline, pods.changed())
                        .await
                        .is_err()
                    {
                        return Err(words);
                    }
                }
            }
        };
        let known = pods.borrow().clone().unwrap_or_default();
        let pod = known.get(&uid).ok_or("the pod is gone")?;
        let claim = pod.container(&container).ok_or_else(|| {
            format!(
                "the claim of pod {} has no container {container}",
                pod.key()
            )
        })?;
        let served = Served {
            uid: uid.clone(),
            container: container.clone(),
            fingerprint: pod
                .containers
                .get(&container)
                .map(|p| p.fingerprint.clone())
                .unwrap_or_default(),
        };
        let shares: Vec<Share> = claim
            .devices
            .iter()
            .filter_map(ClaimedDevice::share)
            .cloned()
            .collect();
        if shares.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let devices = self
                .nvml
                .ensure_devices(&uid, &container, left)
                .await
                .map_err(|e| e.to_string())?;
            self.cdi
                .write_mig(ids, &served, &devices)
                .map_err(|e| e.to_string())?;
        } else {
            let shares = self.in_share_mode(shares, deadline).await?;
            self.cdi
                .write_shares(ids, &served, &shares)
                .map_err(|e| e.to_string())?;
        }
        tracing::info!(pod = pod.key(), container, "Prepared a container");
        Ok(())
    }

    /// The shares with the minor numbers of their cards, once those work in mode hami-core: by demand that comes only now.
    async fn in_share_mode(
        &self,
        shares: Vec<Share>,
        deadline: Instant,
    ) -> Result<Vec<(Share, u32)>, String> {
        let mut inventory = self.nvml.inventory();
        let minor = |inventory: &Inventory, gpu: &str| {
            let state = inventory.state.gpus.get(gpu);
            let state = state.filter(|state| state.mode() == VgpuMode::HamiCore);
            state.map(|state| state.surveyed.minor)
        };
        let ready = inventory.wait_for(|inventory| {
            let mut all = shares.iter();
            all.all(|share| minor(inventory, &share.gpu).is_some())
        });
        let _ = tokio::time::timeout_at(deadline, ready).await;
        let inventory = inventory.borrow();
        shares
            .into_iter()
            .map(|share| match minor(&inventory, &share.gpu) {
                Some(minor) => Ok((share, minor)),
                None => Err(format!(
                    "GPU {} is not here in mode hami-core yet",
                    share.gpu
                )),
            })
            .collect()
    }

    /// Whether the spec of a container that starts again is good as it is: right after the agent's start the API server
    /// may be away, and what runs has to go on.
    ///
    /// kubelet must name exactly the container that the spec was written for, and all of its devices must still be the
    /// pod's by the journal.
    async fn serves_as_before(&self, ids: &DeviceIds) -> Result<bool, String> {
        let Some((served, devices)) = self.cdi.served_devices(ids) else {
            return Ok(false);
        };
        let holdings = self.holdings().await?;
        let by_uid = |holding: &&Holding| matches!(holding.pod, PodName::Uid(_));
        let mut holders = holdings.iter().filter(by_uid).filter(|h| h.ids == *ids);
        let is_same = |holding: &Holding| {
            holding.pod == PodName::Uid(served.uid.clone()) && holding.container == served.container
        };
        let only = holders.next().is_some_and(is_same) && holders.next().is_none();
        let inventory = self.nvml.inventory().borrow().clone();
        let cards = &inventory.state.gpus;
        let all_there = devices.iter().all(|uuid| {
            cards.values().any(|state| {
                let shared = state.mode() == VgpuMode::HamiCore && state.surveyed.uuid == *uuid;
                shared
                    || state
                        .instances
                        .iter()
                        .any(|held| held.was_device_of(&served.uid, uuid))
            })
        });
        Ok(only && !devices.is_empty() && all_there)
    }

    /// Who holds which ids: kubelet's checkpoint, and `PodResources` for what that does not say.
    async fn holdings(&self) -> Result<Vec<Holding>, String> {
        let mut holdings = self.checkpoint().await?;
        let listed = self
            .list()
            .await
            .map_err(|e| format!("kubelet's PodResources: {}", e.message()));
        match listed {
            Ok(listed) => holdings.extend(listed),
            Err(words) if holdings.is_empty() => return Err(words),
            Err(words) => tracing::debug!(words, "The checkpoint alone is used"),
        }
        Ok(holdings)
    }

    async fn checkpoint(&self) -> Result<Vec<Holding>, String> {
        let checkpoint = self.kubelet.directory.join("kubelet_internal_checkpoint");
        let resource = self.kubelet.resource.clone();
        tokio::task::spawn_blocking(move || checkpoint::read(&checkpoint, &resource))
            .await
            .map_err(|e| e.to_string())
    }

    async fn list(&self) -> Result<Vec<Holding>, Status> {
        let endpoint =
            Endpoint::try_from(format!("unix://{}", self.kubelet.pod_resources.display()))
                .map_err(|e| Status::internal(e.to_string()))?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let answer = PodResourcesListerClient::new(channel)
            .max_decoding_message_size(16 << 20)
            .list(ListPodResourcesRequest {})
            .await?
            .into_inner();
        Ok(answer
            .pod_resources
            .into_iter()
            .flat_map(|pod| {
                let key = format!("{}/{}", pod.namespace, pod.name);
                let resource = self.kubelet.resource.clone();
                pod.containers.into_iter().filter_map(move |container| {
                    // Split by NUMA node: one set.
                    let ids: DeviceIds = container
                        .devices
                        .into_iter()
                        .filter(|devices| devices.resource_name == resource)
                        .flat_map(|devices| devices.device_ids)
                        .collect();
                    (!ids.is_empty()).then(|| Holding {
                        pod: PodName::Key(key.clone()),
                        container: container.name,
                        ids,
                    })
                })
            })
            .collect())
    }
}

/// Serves kubelet and registers with it, and again whenever kubelet or our socket is new; for ever.
pub async fn run(plugin: Plugin, token: CancellationToken) -> anyhow::Result<()> {
    let name = format!("tessera-{}.sock", plugin.kubelet.resource.replace('/', "-"));
    let socket = plugin.kubelet.directory.join(&name);
    let kubelet = plugin.kubelet.directory.join("kubelet.sock");
    let mut inventory = plugin.nvml.inventory();
    // Registering before the first survey would offer no device, and a node without GPUs for a moment.
    let surveyed = inventory.wait_for(|inventory| inventory.is_surveyed());
    if token.run_until_cancelled(surveyed).await.is_none() {
        return Ok(());
    }
    while !token.is_cancelled() {
        let stop = token.child_token();
        let _ = std::fs::remove_file(&socket);
        let served = async {
            let listener = UnixListener::bind(&socket)?;
            Server::builder()
                .add_service(DevicePluginServer::new(plugin.clone()))
                .serve_with_incoming_shutdown(
                    UnixListenerStream::new(listener),
                    stop.clone().cancelled_owned(),
                )
                .await?;
            anyhow::Ok(())
        };
        let registered = async {
            let id = inode(&kubelet);
            register(&plugin.kubelet, &name).await?;
            tracing::info!(
                resource = plugin.kubelet.resource,
                "Registered with kubelet"
            );
            // kubelet removes all sockets when it starts, and makes its own anew.
            while inode(&socket).is_some() && inode(&kubelet) == id {
                tokio::time::sleep(LOOK).await;
            }
            plugin.registered(Registration::Missing);
            tracing::info!("kubelet was restarted");
            anyhow::Ok(())
        };
        let ended = tokio::select! {
            () = token.cancelled() => Ok(()),
            ended = served => ended,
            ended = registered => ended,
        };
        stop.cancel();
        if let Err(error) = ended {
            tracing::warn!(
                error = format!("{error:#}"),
                "kubelet cannot be served, trying again"
            );
            // kubelet admits pods within a second of its socket's coming, and fails those whose plugin it does not know.
            let known = inode(&kubelet);
            let again = Instant::now() + Duration::from_secs(1);
            while Instant::now() < again && inode(&kubelet) == known && !token.is_cancelled() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

fn inode(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

async fn register(kubelet: &Kubelet, endpoint: &str) -> anyhow::Result<()> {
    let socket = kubelet.directory.join("kubelet.sock");
    let channel = Endpoint::try_from(format!("unix://{}", socket.display()))?
        .connect()
        .await?;
    RegistrationClient::new(channel)
        .register(RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: kubelet.resource.clone(),
            options: Some(options()),
        })
        .await?;
    Ok(())
}
