//! Compute instances in a GPU instance.

use super::{Compute, Gpu, Instance};
use crate::code::{Code, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NOT_SUPPORTED, UNKNOWN};

/// Constants of compute instance profiles that this library knows (`NVML_COMPUTE_INSTANCE_PROFILE_COUNT`).
const CI_PROFILES: u32 = 9;
/// A compute instance profile in a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeProfile {
    /// Constant, and id.
    pub constant: u32,
    /// Compute slices.
    pub slices: u8,
    /// Multiprocessors.
    pub sm: u32,
    /// How many fit in an empty GPU instance.
    pub count: u32,
}

impl Gpu {
    /// The compute instance profile of a constant in an instance.
    pub fn compute_profile(
        &self,
        instance: &Instance,
        constant: u32,
    ) -> Result<ComputeProfile, Code> {
        if constant >= CI_PROFILES {
            return Err(INVALID_ARGUMENT);
        }
        let model = self.model();
        let gi = model.by_id(instance.profile_id).ok_or(UNKNOWN)?;
        let one = model.by_constant(0).map_or(gi.sm, |profile| profile.sm);
        let slices: u8 = match constant {
            0 | 7 => 1,
            1 => 2,
            2 => 3,
            3 => 4,
            4 => 7,
            _ => return Err(NOT_SUPPORTED),
        };
        let whole = slices == gi.compute_slices;
        // In a double-memory 1g with more multiprocessors than 1g both sizes exist.
        let sm = match (constant, whole) {
            (7, true) if gi.sm > one => gi.sm,
            (7, _) => return Err(NOT_SUPPORTED),
            (0, true) if gi.constant == 9 => one.min(gi.sm),
            (_, true) => gi.sm,
            _ => one * u32::from(slices),
        };
        let halves = slices == 3 && gi.compute_slices == 4;
        if slices > gi.compute_slices || halves {
            return Err(NOT_SUPPORTED);
        }
        Ok(ComputeProfile {
            constant,
            slices,
            sm,
            count: u32::from(gi.compute_slices / slices),
        })
    }

    /// Makes a compute instance in a GPU instance; its id.
    pub fn create_compute(&mut self, id: u32, profile: u32) -> Result<u32, Code> {
        let instance = self.instance(id).ok_or(INVALID_ARGUMENT)?;
        let wanted = self.compute_profile(instance, profile)?;
        let gi = self.model().by_id(instance.profile_id).ok_or(UNKNOWN)?;
        let free = |start: u8| {
            instance.compute.iter().all(|other| {
                start >= other.start + other.slices || other.start >= start + wanted.slices
            })
        };
        let start = (0..=gi.compute_slices - wanted.slices)
            .find(|start| free(*start))
            .ok_or(INSUFFICIENT_RESOURCES)?;
        let compute_id = (0..8)
            .find(|id| instance.compute.iter().all(|c| c.id != *id))
            .ok_or(INSUFFICIENT_RESOURCES)?;
        let made = Compute {
            id: compute_id,
            profile,
            slices: wanted.slices,
            start,
            sm: wanted.sm,
        };
        if let Some(instance) = self.instances.iter_mut().find(|instance| instance.id == id) {
            instance.compute.push(made);
        }
        Ok(compute_id)
    }

    /// Destroys a compute instance.
    pub fn destroy_compute(&mut self, id: u32, compute: u32) -> Result<(), Code> {
        let instance = self
            .instances
            .iter_mut()
            .find(|i| i.id == id)
            .ok_or(INVALID_ARGUMENT)?;
        let before = instance.compute.len();
        instance.compute.retain(|other| other.id != compute);
        if instance.compute.len() == before {
            Err(INVALID_ARGUMENT)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::gpu, *};
    use crate::code::IN_USE;

    #[test]
    fn a_compute_instance_holds_its_gpu_instance() {
        let mut gpu = gpu("H100-SXM5-80GB");
        let id = gpu.create_at(15, 6, 2).unwrap();
        let instance = gpu.instance(id).unwrap().clone();
        let profile = |constant| gpu.compute_profile(&instance, constant);
        assert_eq!(
            (profile(0).unwrap().sm, profile(7).unwrap().sm),
            (16, 26),
            "both sizes in a REV2 instance"
        );
        assert_eq!(
            (profile(1), profile(9)),
            (Err(NOT_SUPPORTED), Err(INVALID_ARGUMENT))
        );
        gpu.create_compute(id, 7).unwrap();
        assert_eq!(gpu.create_compute(id, 7), Err(INSUFFICIENT_RESOURCES));
        assert_eq!(gpu.destroy(id), Err(IN_USE));
        gpu.destroy_compute(id, 0).unwrap();
        gpu.destroy(id).unwrap();
        assert_eq!(gpu.destroy(id), Err(INVALID_ARGUMENT));
    }
}
