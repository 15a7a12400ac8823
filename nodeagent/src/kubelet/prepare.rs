//! Prepares a container just before kubelet creates it: finds out which container it is, waits for its devices, and
//! writes the CDI spec that it is created with.

use std::{sync::Arc, time::Duration};

use domain::{
    claim::{ClaimedDevice, Share},
    mode::VgpuMode,
    pod::PodName,
};
use tokio::{sync::watch, time::Instant};

use crate::{
    gpus::{blocked::Blocked, claims::ClaimedPod, inventory::Inventory},
    kubelet::{
        cdi::{error::CdiError, mig, share, specs::CdiSpecs},
        client::{Kubelet, KubeletError},
        id_holders::{DeviceIds, PodRef, PreparedContainer},
        resolve::{Resolution, Unresolved, resolve},
    },
    materialise::thread::NvmlThread,
    pods::Pods,
};

/// How long one call may take. kubelet gives `PreStartContainer` 30 s; what is not ready by then is asked for again.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(25);
/// How long kubelet may take to report who holds the ids that it starts a container with.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often kubelet is asked meanwhile.
const HOLDER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a container cannot be created yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("the API server has not listed the pods of this node yet")]
    NoPodsYet,
    #[error(
        "kubelet names no container of a pod with a Tessera claim for these device ids; \
         was the pod scheduled by tessera-scheduler?"
    )]
    NoHolder,
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    #[error("the claim of pod {pod} has no container {container}")]
    NotInClaim { pod: PodName, container: String },
    #[error("GPU {0} is not in mode hami-core yet, or not on this node")]
    NotInShareMode(String),
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    #[error(transparent)]
    Blocked(#[from] Blocked),
    #[error(transparent)]
    Cdi(#[from] CdiError),
}

/// Prepares containers.
#[derive(Clone)]
pub(crate) struct Preparer {
    pub(crate) kubelet: Kubelet,
    pub(crate) nvml: NvmlThread,
    pub(crate) pods: watch::Receiver<Pods>,
    pub(crate) cdi: CdiSpecs,
}

impl Preparer {
    /// Prepares the container that is starting with these ids.
    pub(crate) async fn prepare(&self, ids: &DeviceIds) -> Result<(), PrepareError> {
        let deadline = Instant::now() + PREPARE_TIMEOUT;
        let Some((pod, container)) = self.starting_container(ids, deadline).await? else {
            return Ok(());
        };
        let claim = pod
            .container(&container)
            .ok_or_else(|| PrepareError::NotInClaim {
                pod: pod.name.clone(),
                container: container.clone(),
            })?;
        let progress = pod.containers.get(&container);
        let prepared = PreparedContainer {
            uid: pod.uid.clone(),
            container: container.clone(),
            fingerprint: progress.map_or_else(String::new, |known| known.fingerprint.clone()),
        };
        let shares: Vec<&Share> = claim
            .devices
            .iter()
            .filter_map(ClaimedDevice::share)
            .collect();
        let edits = if shares.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let devices = self.nvml.ensure_devices(&pod.uid, &container, left).await?;
            mig::edits(&self.cdi.driver, &devices)?
        } else {
            let shares = self.wait_for_share_mode(&shares, deadline).await?;
            {
                let limiter = match progress {
                    Some(known) if known.disables_limiter => share::Limiter::Disabled,
                    _ => share::Limiter::Preloaded,
                };
                share::edits(
                    &self.cdi.driver,
                    &self.cdi.hook,
                    &prepared,
                    &shares,
                    limiter,
                )?
            }
        };
        self.cdi.write(ids, &prepared, edits)?;
        tracing::info!(pod = %pod.name, container, "Prepared a container");
        Ok(())
    }

    /// The pod and the container that is starting with these ids; `None` if its spec is good as it is.
    async fn starting_container(
        &self,
        ids: &DeviceIds,
        deadline: Instant,
    ) -> Result<Option<(ClaimedPod, String)>, PrepareError> {
        let holder_deadline = Instant::now() + HOLDER_TIMEOUT;
        let mut pods = self.pods.clone();
        loop {
            let Some(known) = pods.borrow_and_update().clone() else {
                if self.has_valid_spec(ids).await? {
                    return Ok(None);
                }
                if !has_changed(&mut pods, deadline).await {
                    return Err(PrepareError::NoPodsYet);
                }
                continue;
            };
            let holders = self.kubelet.id_holders().await?;
            let written = self.cdi.read(ids);
            let prepared = written.as_ref().map(|spec| &spec.container);
            match resolve(ids, &holders, &known, prepared) {
                Resolution::Starting { pod, container } => {
                    return Ok(Some((pod.clone(), container.to_owned())));
                }
                Resolution::Nobody if Instant::now() < holder_deadline => {
                    tokio::time::sleep(HOLDER_CHECK_INTERVAL).await;
                }
                Resolution::Nobody => return Err(PrepareError::NoHolder),
                Resolution::NotYet(unresolved) => {
                    if !has_changed(&mut pods, deadline).await {
                        return Err(unresolved.into());
                    }
                }
            }
        }
    }

    /// Waits until the GPUs of all shares work in mode hami-core: on a node of mode `auto` they change when they are
    /// claimed. Returns the shares with the minor numbers of their GPUs.
    async fn wait_for_share_mode<'a>(
        &self,
        shares: &[&'a Share],
        deadline: Instant,
    ) -> Result<Vec<(&'a Share, u32)>, PrepareError> {
        let mut inventory = self.nvml.inventory();
        let ready = inventory.wait_for(|inventory| {
            let mut all = shares.iter();
            all.all(|share| share_minor(inventory, &share.gpu).is_some())
        });
        // Whatever is missing at the deadline is reported below.
        let _ = tokio::time::timeout_at(deadline, ready).await;
        let inventory = inventory.borrow();
        shares
            .iter()
            .map(|share| match share_minor(&inventory, &share.gpu) {
                Some(minor) => Ok((*share, minor)),
                None => Err(PrepareError::NotInShareMode(share.gpu.clone())),
            })
            .collect()
    }

    /// Whether the spec of a container that starts again can be used as it is: right after the start of the agent the
    /// API server may be away, and running pods must go on.
    ///
    /// kubelet must name exactly the container that the spec was written for, and all of its devices must still be the
    /// pod's according to the journal.
    async fn has_valid_spec(&self, ids: &DeviceIds) -> Result<bool, PrepareError> {
        let Some(spec) = self.cdi.read(ids) else {
            return Ok(false);
        };
        let holders = self.kubelet.id_holders().await?;
        // PodResources names pods without UID, so a pod that was recreated under the same name looks the same.
        let mut holders = holders
            .iter()
            .filter(|holder| matches!(holder.pod, PodRef::Uid(_)) && holder.ids == *ids);
        let is_only_holder = holders.next().is_some_and(|holder| {
            holder.pod == PodRef::Uid(spec.container.uid.clone())
                && holder.container == spec.container.container
        }) && holders.next().is_none();
        let inventory: Arc<Inventory> = self.nvml.inventory().borrow().clone();
        let has_device = |uuid: &String| {
            inventory.state.gpus.values().any(|gpu| {
                let is_shared = gpu.mode() == VgpuMode::HamiCore && gpu.surveyed.uuid == *uuid;
                let mut instances = gpu.instances.iter();
                is_shared || instances.any(|i| i.was_device_of(&spec.container.uid, uuid))
            })
        };
        let has_devices = !spec.devices.is_empty() && spec.devices.iter().all(has_device);
        Ok(is_only_holder && has_devices)
    }
}

/// Waits for the next change of the pods; `false` if there is none before the deadline.
async fn has_changed(pods: &mut watch::Receiver<Pods>, deadline: Instant) -> bool {
    matches!(
        tokio::time::timeout_at(deadline, pods.changed()).await,
        Ok(Ok(()))
    )
}

/// Minor number of a GPU that works in mode hami-core.
fn share_minor(inventory: &Inventory, gpu: &str) -> Option<u32> {
    let state = inventory.state.gpus.get(gpu)?;
    (state.mode() == VgpuMode::HamiCore).then_some(state.surveyed.minor)
}
