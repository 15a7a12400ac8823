//! What a simulation found: the JSON that it prints.

use domain::{claim::Claim, gpu::Gpu, status::GpuNodeStatus};
use serde::Serialize;

use crate::input::pod::SimulatedPod;

/// What a simulation found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The name of the rule.
    pub policy: String,
    /// Every pod, in the order of arrival.
    pub pods: Vec<Fate>,
    /// The sums.
    pub summary: Summary,
    /// State after each arrival.
    pub series: Vec<Sample>,
}

/// What became of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fate {
    /// Its name.
    pub name: String,
    /// The node; absent while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Seconds from arrival to start; absent while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// Why it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The pods whose restart would make room for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

/// A device of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The container that has it.
    pub container: String,
    /// NVML index of the GPU.
    pub gpu: u32,
    /// MIG profile, or `share`.
    pub profile: String,
    /// First memory slice, of an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u8>,
    /// Memory slices, of an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u8>,
    /// Its memory, MiB.
    pub memory_mib: u64,
}

/// What became of all pods together.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many pods there were.
    pub pods: usize,
    /// Pods that were placed.
    pub placed: usize,
    /// Pods that are pending at the end.
    pub pending: usize,
    /// GPUs given on arrival per GPUs asked for, percent.
    pub accepted_at_once: f64,
    /// Mean wait of those placed, seconds.
    pub mean_wait_seconds: f64,
    /// Longest wait of those placed, seconds.
    pub longest_wait_seconds: f64,
    /// The part of the GPUs in use, percent, averaged over time.
    pub mean_utilisation: f64,
    /// The same at the end.
    pub utilisation: f64,
}

/// The state at one time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// When, seconds.
    pub at: f64,
    /// The part of the GPUs in use, percent.
    pub utilisation: f64,
    /// GPUs given on arrival per GPUs asked for, so far, percent.
    pub accepted: f64,
}

impl Fate {
    pub(super) fn pending(pod: &SimulatedPod) -> Self {
        Self {
            name: pod.name.clone(),
            node: None,
            devices: vec![],
            wait_seconds: None,
            reason: None,
            restart: vec![],
        }
    }

    pub(super) fn start(
        &mut self,
        node: &str,
        claim: &Claim,
        status: Option<&GpuNodeStatus>,
        wait: f64,
    ) {
        let gpus = status
            .map(|status| status.gpus.as_slice())
            .unwrap_or_default();
        self.node = Some(node.to_owned());
        self.wait_seconds = Some(wait);
        self.devices = claim
            .containers
            .iter()
            .flat_map(|container| {
                container
                    .devices
                    .iter()
                    .map(move |device| (container, device))
            })
            .map(|(container, device)| {
                let slot = device.slot();
                Device {
                    container: container.name.clone(),
                    gpu: gpu_index(gpus, device.gpu()),
                    profile: slot.map_or_else(|| "share".to_owned(), |slot| slot.profile.clone()),
                    start: slot.map(|slot| slot.start),
                    size: slot.map(|slot| slot.size),
                    memory_mib: device.memory_mib(),
                }
            })
            .collect();
    }
}

fn gpu_index(gpus: &[Gpu], uuid: &str) -> u32 {
    let found = gpus.iter().find(|gpu| gpu.uuid == uuid);
    found.map_or(0, |gpu| gpu.index)
}
