//! GPU models as NVML reports them, for tests and simulations; the daemons read them from NVML.

use serde::Deserialize;

use crate::{
    demand::{ContainerDemand, ContainerKind, Demand, Memory},
    gpu::{Gpu, Model, Offer},
    mode::VgpuMode,
    status::GpuNodeStatus,
};

#[derive(Deserialize)]
struct Entry {
    key: String,
    short: Option<String>,
    name: String,
    memory_mib: u64,
    compute_slices: u8,
    memory_slices: u8,
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    name: String,
    id: u32,
    memory_mib: u64,
    sm: u32,
    compute_slices: u8,
    size: u8,
    starts: Vec<u8>,
    max_count: u8,
}

impl From<Entry> for Model {
    fn from(entry: Entry) -> Self {
        let offer = |profile: Profile| Offer {
            profile: profile.name,
            profile_id: profile.id,
            memory_mib: profile.memory_mib,
            multiprocessors: profile.sm,
            compute_slices: profile.compute_slices,
            size: profile.size,
            starts: profile.starts,
            max_count: profile.max_count,
        };
        Self {
            name: entry.name,
            memory_mib: entry.memory_mib,
            memory_slices: entry.memory_slices,
            compute_slices: entry.compute_slices,
            offers: entry.profiles.into_iter().map(offer).collect(),
        }
    }
}

fn entries() -> Vec<Entry> {
    serde_json::from_str(include_str!("../models.json")).unwrap_or_default()
}

/// The model of that key (`A100-SXM4-80GB`), short key (`a100-80gb`) or NVML name.
pub fn model(key: &str) -> Option<Model> {
    let named = |entry: &Entry| {
        entry.key.eq_ignore_ascii_case(key)
            || entry.short.as_deref() == Some(key)
            || entry.name == key
    };
    entries().into_iter().find(named).map(Model::from)
}

/// All models.
pub fn models() -> Vec<Model> {
    entries().into_iter().map(Model::from).collect()
}

/// The keys of all models, the short one where there is one.
pub fn model_keys() -> Vec<String> {
    let keys = entries().into_iter();
    keys.map(|entry| entry.short.unwrap_or(entry.key)).collect()
}

fn known(key: &str) -> Model {
    model(key).expect("the table has it")
}

/// NVIDIA A100-SXM4-80GB.
pub fn a100_80gb() -> Model {
    known("a100-80gb")
}

/// NVIDIA H100 80GB HBM3.
pub fn h100_80gb() -> Model {
    known("h100-80gb")
}

/// NVIDIA A30: 4 memory slices.
pub fn a30() -> Model {
    known("a30")
}

/// NVIDIA RTX PRO 6000 Blackwell Server Edition: 12 memory slices.
pub fn rtx_pro_6000() -> Model {
    known("rtx-pro-6000")
}

/// One device of at least so many MiB, in either mode.
pub fn demand(mib: u64) -> Demand {
    Demand {
        containers: vec![ContainerDemand {
            name: "main".to_owned(),
            kind: ContainerKind::App,
            count: 1,
            memory: Memory::Mib(mib),
            cores: 0,
        }],
        ..Demand::default()
    }
}

/// A healthy, empty node with `count` GPUs of one model; their UUIDs are `GPU-<name>-<index>`.
pub fn node(name: &str, model: &Model, count: u32, mode: VgpuMode) -> GpuNodeStatus {
    GpuNodeStatus {
        models: vec![model.clone()],
        gpus: (0..count)
            .map(|index| Gpu {
                index,
                uuid: format!("GPU-{name}-{index}"),
                model: model.name.clone(),
                memory_mib: model.memory_mib,
                mode,
                changing_to: None,
                auto_mode: false,
                unhealthy: None,
                max_shares: 10,
                numa: None,
                instances: vec![],
                used_shares: vec![],
            })
            .collect(),
        ..GpuNodeStatus::default()
    }
}
