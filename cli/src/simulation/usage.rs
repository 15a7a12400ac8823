//! How much of the GPUs is in use: now, over time, and per device.

use domain::{
    claim::{Claim, ClaimedDevice},
    demand::{Demand, Memory},
    status::GpuNodeStatus,
};

/// The GPUs in use, summed up over time.
#[derive(Debug)]
pub(super) struct Usage {
    used: f64,
    all: f64,
    /// GPUs in use, integrated over the seconds until `now`.
    area: f64,
    now: f64,
}

impl Usage {
    pub(super) fn new(used: f64, gpus: usize) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "GPUs are far below 2^52")]
        let all = gpus.max(1) as f64;
        Self {
            used,
            all,
            area: 0.0,
            now: 0.0,
        }
    }

    pub(super) fn advance_to(&mut self, now: f64) {
        self.area += self.used * (now - self.now);
        self.now = now;
    }

    pub(super) fn take(&mut self, gpus: f64) {
        self.used += gpus;
    }

    pub(super) fn give_back(&mut self, gpus: f64) {
        self.used -= gpus;
    }

    /// The part of the GPUs that is in use now.
    pub(super) fn percent(&self) -> f64 {
        100.0 * self.used / self.all
    }

    /// Its mean over time.
    pub(super) fn mean_percent(&self) -> f64 {
        if self.now > 0.0 {
            100.0 * self.area / self.now / self.all
        } else {
            self.percent()
        }
    }
}

/// The GPUs that a claim takes on a node.
pub(super) fn gpus_of_claim(claim: &Claim, status: Option<&GpuNodeStatus>) -> f64 {
    let devices = claim.devices();
    devices.map(|device| part_of_gpu(device, status)).sum()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
fn part_of_gpu(device: &ClaimedDevice, status: Option<&GpuNodeStatus>) -> f64 {
    let gpu = status.and_then(|s| s.gpus.iter().find(|gpu| gpu.uuid == device.gpu()));
    match device {
        ClaimedDevice::Mig(slot) => {
            let model = gpu.and_then(|gpu| status?.model(&gpu.model));
            f64::from(slot.size) / f64::from(model.map_or(8, |model| model.memory_slices.max(1)))
        }
        ClaimedDevice::HamiCore(share) => {
            share.mem as f64 / gpu.map_or(1, |gpu| gpu.memory_mib.max(1)) as f64
        }
    }
}

/// The GPUs that a pod asks for by memory, where the largest GPU has so many MiB.
#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
pub(super) fn gpus_asked_for(demand: &Demand, largest_mib: u64) -> f64 {
    let parts = demand.containers.iter().map(|container| {
        let part = match container.memory {
            Memory::Whole => 1.0,
            Memory::Mib(mib) => mib as f64 / largest_mib.max(1) as f64,
            Memory::Percent(percent) => f64::from(percent) / 100.0,
        };
        part * f64::from(container.count)
    });
    parts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;

    #[test]
    fn use_is_averaged_over_time() {
        let mut usage = Usage::new(0.0, 2);
        usage.take(1.0);
        usage.advance_to(5.0);
        usage.give_back(1.0);
        usage.advance_to(10.0);
        assert!((usage.mean_percent() - 25.0).abs() < 1e-9);
        assert!(usage.percent().abs() < 1e-9);
    }

    #[test]
    fn what_is_asked_for_is_counted_by_memory() {
        let gpus = gpus_asked_for(&fixtures::demand(6_000), 24_000);
        assert!((gpus - 0.25).abs() < 1e-9);
    }
}
