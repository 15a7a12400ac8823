//! Cards of the field as NVML reports them, for tests; the product reads them from NVML.

use crate::{Gpu, GpuNodeStatus, Model, Offer, VgpuMode};

fn offer(
    profile: &str,
    id: u32,
    memory_mib: u64,
    sm: u32,
    slices: (u8, u8),
    starts: &[u8],
    max_count: u8,
) -> Offer {
    Offer {
        profile: profile.to_owned(),
        profile_id: id,
        memory_mib,
        multiprocessors: sm,
        compute_slices: slices.0,
        size: slices.1,
        starts: starts.to_vec(),
        max_count,
    }
}

/// NVIDIA A100-SXM4-80GB.
pub fn a100_80gb() -> Model {
    let all = [0, 1, 2, 3, 4, 5, 6];
    Model {
        name: "NVIDIA A100-SXM4-80GB".to_owned(),
        memory_mib: 81_920,
        memory_slices: 8,
        compute_slices: 7,
        offers: vec![
            offer("1g.10gb", 19, 9_728, 14, (1, 1), &all, 7),
            offer("1g.10gb+me", 20, 9_728, 14, (1, 1), &all, 1),
            offer("1g.20gb", 15, 19_968, 14, (1, 2), &[0, 2, 4, 6], 4),
            offer("2g.20gb", 14, 19_968, 28, (2, 2), &[0, 2, 4], 3),
            offer("3g.40gb", 9, 40_192, 42, (3, 4), &[0, 4], 2),
            offer("4g.40gb", 5, 40_192, 56, (4, 4), &[0], 1),
            offer("7g.80gb", 0, 80_640, 98, (7, 8), &[0], 1),
        ],
    }
}

/// NVIDIA H100 80GB HBM3.
pub fn h100_80gb() -> Model {
    let all = [0, 1, 2, 3, 4, 5, 6];
    Model {
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_mib: 81_559,
        memory_slices: 8,
        compute_slices: 7,
        offers: vec![
            offer("1g.10gb", 19, 9_984, 16, (1, 1), &all, 7),
            offer("1g.10gb+me", 20, 9_984, 16, (1, 1), &all, 1),
            offer("1g.20gb", 15, 20_096, 26, (1, 2), &[0, 2, 4, 6], 4),
            offer("2g.20gb", 14, 20_096, 32, (2, 2), &[0, 2, 4], 3),
            offer("3g.40gb", 9, 40_448, 60, (3, 4), &[0, 4], 2),
            offer("4g.40gb", 5, 40_448, 64, (4, 4), &[0], 1),
            offer("7g.80gb", 0, 81_152, 132, (7, 8), &[0], 1),
        ],
    }
}

/// NVIDIA A30: 4 memory slices.
pub fn a30() -> Model {
    Model {
        name: "NVIDIA A30".to_owned(),
        memory_mib: 24_576,
        memory_slices: 4,
        compute_slices: 4,
        offers: vec![
            offer("1g.6gb", 14, 5_952, 14, (1, 1), &[0, 1, 2, 3], 4),
            offer("2g.12gb", 5, 11_968, 28, (2, 2), &[0, 2], 2),
            offer("4g.24gb", 0, 24_000, 56, (4, 4), &[0], 1),
        ],
    }
}

/// NVIDIA RTX PRO 6000 Blackwell Server Edition: 12 memory slices.
pub fn rtx_pro_6000() -> Model {
    Model {
        name: "NVIDIA RTX PRO 6000 Blackwell Server Edition".to_owned(),
        memory_mib: 97_887,
        memory_slices: 12,
        compute_slices: 4,
        offers: vec![
            offer("1g.24gb", 14, 24_192, 46, (1, 3), &[0, 3, 6, 9], 4),
            offer("1g.24gb-me", 67, 24_192, 46, (1, 3), &[0, 3, 6, 9], 4),
            offer("2g.48gb", 5, 48_512, 94, (2, 6), &[0, 6], 2),
            offer("4g.96gb", 0, 97_408, 188, (4, 12), &[0], 1),
        ],
    }
}

/// A healthy, empty node with `count` cards of one model; their UUIDs are `GPU-<name>-<index>`.
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
                unhealthy: None,
                shares: 10,
                numa: None,
                instances: vec![],
            })
            .collect(),
        ..GpuNodeStatus::default()
    }
}
