//! GPU instances: where one can be made, where the driver makes it, what forbids it.

use super::{Gpu, Instance};
use crate::{
    code::{Code, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NOT_SUPPORTED},
    model::Profile,
};

/// Constants of GPU instance profiles that this library knows (`NVML_GPU_INSTANCE_PROFILE_COUNT`).
pub(crate) const GI_PROFILES: u32 = 0x12;
/// Driver limit of GPU instances per GPU.
const MOST_INSTANCES: usize = 8;

impl Gpu {
    /// Why an instance cannot be made there; `None`: it can.
    pub fn obstacle(&self, profile: &Profile, start: u8) -> Option<Code> {
        if !profile.starts.contains(&start) {
            return Some(INVALID_ARGUMENT);
        }
        let overlaps = self
            .instances
            .iter()
            .any(|other| start < other.start + other.size && other.start < start + profile.size);
        let of_profile = self
            .instances
            .iter()
            .filter(|i| i.profile_id == profile.id)
            .count();
        let mut slices = profile.compute_slices;
        let mut engines = profile.engines;
        for other in self
            .instances
            .iter()
            .filter_map(|i| self.model().by_id(i.profile_id))
        {
            slices += other.compute_slices;
            for (sum, more) in engines.iter_mut().zip(other.engines) {
                *sum += more;
            }
        }
        // Copy engines are shared out by the driver; the media engines are what limits +me profiles.
        let media = engines
            .iter()
            .zip(self.model().whole().engines)
            .skip(1)
            .any(|(sum, all)| *sum > all);
        let full = overlaps
            || of_profile >= usize::from(profile.max_count)
            || slices > self.model().compute_slices
            || media
            || self.instances.len() >= MOST_INSTANCES;
        full.then_some(INSUFFICIENT_RESOURCES)
    }

    /// How many more of a profile can be made now.
    pub fn remaining(&self, profile: &Profile) -> u32 {
        let mut trial = self.clone();
        let mut count = 0;
        while let Some(start) = profile
            .starts
            .iter()
            .copied()
            .find(|s| trial.obstacle(profile, *s).is_none())
        {
            trial.put(profile, start);
            count += 1;
        }
        count
    }

    fn put(&mut self, profile: &Profile, start: u8) -> u32 {
        let id = self.instance_id(start, profile.size);
        self.serial += 1;
        self.instances.push(Instance {
            id,
            profile_id: profile.id,
            start,
            size: profile.size,
            serial: self.serial,
            compute: vec![],
        });
        self.instances.sort_by_key(|instance| instance.id);
        id
    }

    /// Makes an instance at a placement; its id.
    pub fn create_at(&mut self, profile_id: u32, start: u8, size: u8) -> Result<u32, Code> {
        let profile = self.creatable(profile_id)?;
        if size != profile.size {
            return Err(INVALID_ARGUMENT);
        }
        match self.obstacle(profile, start) {
            Some(code) => Err(code),
            None => Ok(self.put(profile, start)),
        }
    }

    /// Makes an instance where the driver would: where most (profile, start) pairs remain, then the lowest start;
    /// the double-memory 1g takes the last quarter last.
    pub fn create(&mut self, profile_id: u32) -> Result<u32, Code> {
        let profile = self.creatable(profile_id)?;
        let remaining = |start: u8| {
            let mut trial = self.clone();
            trial.put(profile, start);
            let model = self.model();
            let pairs = model
                .profiles
                .iter()
                .flat_map(|p| p.starts.iter().map(move |s| (p, *s)));
            pairs
                .filter(|(p, s)| trial.obstacle(p, *s).is_none())
                .count()
        };
        let last_quarter = |start: u8| profile.constant == 9 && start == 6;
        let start = profile
            .starts
            .iter()
            .copied()
            .filter(|start| self.obstacle(profile, *start).is_none())
            .min_by_key(|start| {
                (
                    last_quarter(*start),
                    std::cmp::Reverse(remaining(*start)),
                    *start,
                )
            })
            .ok_or(INSUFFICIENT_RESOURCES)?;
        Ok(self.put(profile, start))
    }

    fn creatable(&self, profile_id: u32) -> Result<&'static Profile, Code> {
        if !self.mig {
            return Err(NOT_SUPPORTED);
        }
        self.model().by_id(profile_id).ok_or(INVALID_ARGUMENT)
    }

    /// Destroys an instance that has no compute instance.
    pub fn destroy(&mut self, id: u32) -> Result<(), Code> {
        let instance = self.instance(id).ok_or(INVALID_ARGUMENT)?;
        if !instance.compute.is_empty() {
            return Err(IN_USE);
        }
        self.instances.retain(|instance| instance.id != id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{super::tests::gpu, *};
    use crate::model::{model, models};

    #[test]
    fn the_driver_places_as_seen_in_the_field() {
        #[derive(Deserialize)]
        struct Trace {
            model: String,
            mirrored: bool,
            profile_ids: Vec<u32>,
            gi_ids: Vec<Option<u32>>,
        }
        let traces: Vec<Trace> =
            serde_json::from_str(include_str!("../../tests/traces.json")).unwrap();
        let mut tried = 0;
        for trace in traces {
            if model(&trace.model).is_none() {
                continue;
            }
            let mut gpu = gpu(&trace.model);
            gpu.mirrored = trace.mirrored;
            let ids: Vec<_> = trace
                .profile_ids
                .iter()
                .map(|id| gpu.create(*id).ok())
                .collect();
            assert_eq!(ids, trace.gi_ids, "{} {:?}", trace.model, trace.profile_ids);
            tried += 1;
        }
        assert!(tried >= 10, "{tried} traces");
    }

    #[test]
    fn taken_used_up_and_fragmented_are_the_same_error_and_an_illegal_start_another() {
        let mut gpu = gpu("A100-SXM4-80GB");
        assert_eq!(gpu.create_at(9, 2, 4), Err(INVALID_ARGUMENT));
        assert_eq!(gpu.create_at(9, 0, 2), Err(INVALID_ARGUMENT));
        assert_eq!(gpu.create_at(77, 0, 1), Err(INVALID_ARGUMENT));
        gpu.create_at(19, 0, 1).unwrap();
        assert_eq!(gpu.create_at(9, 0, 4), Err(INSUFFICIENT_RESOURCES));
        gpu.create_at(19, 4, 1).unwrap();
        assert_eq!(
            gpu.create(9),
            Err(INSUFFICIENT_RESOURCES),
            "6 slices are free, no half"
        );
        gpu.create_at(20, 1, 1).unwrap();
        assert_eq!(
            gpu.create(20),
            Err(INSUFFICIENT_RESOURCES),
            "+me is one per GPU"
        );
        gpu.mig = false;
        assert_eq!(gpu.create(19), Err(NOT_SUPPORTED));
    }

    #[test]
    fn media_engines_limit_where_slices_do_not() {
        let mut a30 = gpu("A30-24GB");
        a30.create_at(21, 0, 1).unwrap();
        assert_eq!(
            a30.create_at(6, 2, 2),
            Err(INSUFFICIENT_RESOURCES),
            "1g+me and 2g+me"
        );
        let mut rtx = gpu("RTX-PRO-6000-Blackwell-Server");
        rtx.create_at(65, 0, 3).unwrap();
        assert_eq!(
            rtx.create(14),
            Err(INSUFFICIENT_RESOURCES),
            "+me.all excludes all but -me"
        );
        rtx.create(67).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_sequence_breaks_the_gpu(
            which in 0..models().len(),
            steps in proptest::collection::vec((0..12usize, 0..12u8, proptest::bool::ANY), 1..40),
        ) {
            let mut gpu = gpu(&models()[which].key);
            let model = gpu.model();
            for (profile, start, create) in steps {
                let profile = &model.profiles[profile % model.profiles.len()];
                if create {
                    let _ = gpu.create_at(profile.id, start, profile.size);
                } else if let Some(first) = gpu.instances.first() {
                    gpu.destroy(first.id).unwrap();
                }
                let mut taken = [false; 12];
                for instance in &gpu.instances {
                    let profile = model.by_id(instance.profile_id).unwrap();
                    assert!(profile.starts.contains(&instance.start));
                    for slice in instance.start..instance.start + instance.size {
                        assert!(!std::mem::replace(&mut taken[usize::from(slice)], true));
                    }
                }
                let mut ids: Vec<_> = gpu.instances.iter().map(|i| i.id).collect();
                ids.dedup();
                assert_eq!(ids.len(), gpu.instances.len(), "ids are unique");
                for profile in &model.profiles {
                    let room = profile.starts.iter().any(|s| gpu.obstacle(profile, *s).is_none());
                    assert_eq!(gpu.remaining(profile) > 0, room);
                }
            }
        }
    }
}
