//! Which pod has what: one row per device.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use daemon::{gpu_node::GpuNode, pods};
use domain::{claim::ClaimedDevice, gpu::Gpu};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};

/// A device of a pod's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `namespace/name`.
    pub pod: String,
    /// The container.
    pub container: String,
    /// `mig` or `hami-core`.
    pub mode: String,
    /// The node.
    pub node: String,
    /// NVML index of the GPU.
    pub gpu: String,
    /// MIG profile, or the share's limits.
    pub profile: String,
    /// First slice and size of the placement.
    pub placement: String,
    /// UUID of the MIG device or GPU; empty until it exists.
    pub uuid: String,
    /// Phase of the pod.
    pub phase: String,
}

/// The rows of all pods that ask for GPU pieces, by name; one that holds nothing has one row.
pub async fn rows(client: Client) -> kube::Result<Vec<Row>> {
    let everything = ListParams::default();
    let pods: Vec<Pod> = Api::all(client.clone()).list(&everything).await?.items;
    let nodes: Vec<GpuNode> = Api::all(client).list(&everything).await?.items;
    let gpus: BTreeMap<String, Gpu> = nodes
        .into_iter()
        .flat_map(|node| node.status.unwrap_or_default().gpus)
        .map(|gpu| (gpu.uuid.clone(), gpu))
        .collect();
    let mut rows: Vec<Row> = pods.iter().flat_map(|pod| of_pod(pod, &gpus)).collect();
    rows.sort_by(|a, b| (&a.pod, &a.container, &a.uuid).cmp(&(&b.pod, &b.container, &b.uuid)));
    Ok(rows)
}

fn of_pod(pod: &Pod, gpus: &BTreeMap<String, Gpu>) -> Vec<Row> {
    let scheduler = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduler_name.as_deref());
    if scheduler != Some(domain::keys::SCHEDULER) {
        return vec![];
    }
    let status = pod.status.as_ref();
    let row = Row {
        pod: pods::name(pod).to_string(),
        container: String::new(),
        mode: pod
            .annotations()
            .get(domain::keys::VGPU_MODE)
            .cloned()
            .unwrap_or_default(),
        node: pods::node(pod).unwrap_or_default().to_owned(),
        gpu: String::new(),
        profile: String::new(),
        placement: String::new(),
        uuid: String::new(),
        phase: status
            .and_then(|status| status.phase.clone())
            .unwrap_or_default(),
    };
    let Some(Ok(claim)) = pods::claim(pod) else {
        return vec![row];
    };
    let mut rows = Vec::new();
    for container in &claim.containers {
        for device in &container.devices {
            let row = Row {
                container: container.name.clone(),
                ..row.clone()
            };
            rows.push(of_device(device, row, gpus));
        }
    }
    rows
}

/// The row of a device, from that of its container.
fn of_device(device: &ClaimedDevice, row: Row, gpus: &BTreeMap<String, Gpu>) -> Row {
    let gpu = gpus.get(device.gpu());
    let index = gpu.map(|gpu| gpu.index.to_string()).unwrap_or_default();
    match device {
        ClaimedDevice::Mig(slot) => {
            let instance = gpu.and_then(|gpu| {
                gpu.instances.iter().find(|instance| {
                    instance.start == slot.start && instance.profile == slot.profile
                })
            });
            Row {
                gpu: index,
                profile: slot.profile.clone(),
                placement: format!("{}:{}", slot.start, slot.size),
                uuid: instance
                    .and_then(|instance| instance.uuid.clone())
                    .unwrap_or_default(),
                ..row
            }
        }
        ClaimedDevice::HamiCore(share) => Row {
            gpu: index,
            profile: format!("{} MiB, {} % cores", share.mem, share.cores),
            placement: "-".to_owned(),
            uuid: share.gpu.clone(),
            ..row
        },
    }
}

/// The rows as a table for a person.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "POD",
        "CONTAINER",
        "MODE",
        "NODE",
        "GPU",
        "PROFILE",
        "PLACEMENT",
        "UUID",
        "PHASE",
    ]);
    for row in rows {
        table.add_row([
            &row.pod,
            &row.container,
            &row.mode,
            &row.node,
            &row.gpu,
            &row.profile,
            &row.placement,
            &row.uuid,
            &row.phase,
        ]);
    }
    table
}
