//! UUIDs of a GPU and its MIG devices, by the driver's rule: the same place has the same UUID again.

use sha1::{Digest, Sha1};

use super::{Compute, Gpu, Instance};

impl Gpu {
    fn seed(&self) -> Vec<u8> {
        // kernel: gpu_uuid.c; name space, "NVIDIA GPU", 02 chip, 08 PDI.
        let mut seed = vec![
            0xc8, 0x16, 0xc9, 0xa3, 0x52, 0x24, 0x56, 0xbf, 0x9d, 0x9a, 0xac, 0x7e, 0xa7, 0x03,
            0xfb, 0x5b,
        ];
        seed.extend(b"NVIDIA GPU");
        seed.push(2);
        seed.extend(self.chip.to_le_bytes());
        seed.push(8);
        seed.extend(self.pdi.to_le_bytes());
        seed
    }

    /// `GPU-…`.
    pub fn uuid(&self) -> String {
        format!("GPU-{}", version5(&self.seed()))
    }

    /// `MIG-…` of a compute instance: the same for every one that ever is at this id and engine.
    pub fn mig_uuid(&self, instance: &Instance, compute: &Compute) -> String {
        let mut seed = self.seed();
        seed.push(0x0b);
        seed.extend(b"SMC");
        seed.extend(instance.id.to_le_bytes());
        let engine = u32::from(self.physical(instance.start)) + u32::from(compute.start);
        seed.extend(engine.to_le_bytes());
        format!("MIG-{}", version5(&seed))
    }

    /// Physical position of a logical start.
    fn physical(&self, start: u8) -> u8 {
        let half = self.model().memory_slices / 2;
        match self.mirrored {
            false => start,
            true if start < half => start + half,
            true => start - half,
        }
    }

    /// Physical id of an instance: 0 all, 1-2 halves, 3-6 quarters, 7-14 eighths.
    pub(super) fn instance_id(&self, start: u8, size: u8) -> u32 {
        let parts = self.model().memory_slices / size;
        let base = u32::from(parts) - 1;
        if size == self.model().memory_slices {
            0
        } else {
            base + u32::from(self.physical(start) / size)
        }
    }
}

/// An RFC 4122 version 5 UUID of a message that begins with its name space.
fn version5(message: &[u8]) -> String {
    let mut hash = Sha1::digest(message);
    hash[6] = hash[6] & 0x0f | 0x50;
    hash[8] = hash[8] & 0x3f | 0x80;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .concat()
    };
    [0..4, 4..6, 6..8, 8..10, 10..16]
        .map(|range| hex(&hash[range]))
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::super::{Gpu, tests::gpu};

    #[test]
    fn uuids_are_the_kernels() {
        let mut gpu = gpu("A100-SXM4-80GB");
        assert_eq!(gpu.uuid(), "GPU-1f009f4d-c4d4-5e43-8251-b910b42c5631");
        gpu.create_at(9, 0, 4).unwrap();
        gpu.create_compute(1, 2).unwrap();
        let uuid = |gpu: &Gpu| {
            let (instance, compute) = gpu.mig_devices().next().unwrap();
            gpu.mig_uuid(instance, compute)
        };
        let first = uuid(&gpu);
        assert_eq!(first, "MIG-a7231aed-2145-543b-b560-ce6ff09b8830");
        // The same place with another profile: the same UUID (mig.md section 6).
        gpu.destroy_compute(1, 0).unwrap();
        gpu.destroy(1).unwrap();
        gpu.create_at(5, 0, 4).unwrap();
        gpu.create_compute(1, 3).unwrap();
        assert_eq!(uuid(&gpu), first);
    }
}
