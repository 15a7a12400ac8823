//! The rules of one simulated card, and NVML's return codes for breaking them. No I/O.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::model::{Model, Profile, model};

/// `nvmlReturn_t`.
pub type Code = u32;
/// Done.
pub const SUCCESS: Code = 0;
/// Not initialized.
pub const UNINITIALIZED: Code = 1;
/// Wrong argument or stale handle.
pub const INVALID_ARGUMENT: Code = 2;
/// Not on this card or in this mode.
pub const NOT_SUPPORTED: Code = 3;
/// Root needed.
pub const NO_PERMISSION: Code = 4;
/// No such instance.
pub const NOT_FOUND: Code = 6;
/// Buffer too small.
pub const INSUFFICIENT_SIZE: Code = 7;
/// Nothing came in time.
pub const TIMEOUT: Code = 10;
/// Fallen off the bus.
pub const GPU_IS_LOST: Code = 15;
/// Somebody uses it.
pub const IN_USE: Code = 19;
/// No room.
pub const INSUFFICIENT_RESOURCES: Code = 23;
/// Wrong struct version.
pub const ARGUMENT_VERSION_MISMATCH: Code = 25;
/// Anything else.
pub const UNKNOWN: Code = 999;

/// Constants of GPU instance profiles that this library knows (`NVML_GPU_INSTANCE_PROFILE_COUNT`).
pub const GI_PROFILES: u32 = 0x12;
/// Constants of compute instance profiles that this library knows (`NVML_COMPUTE_INSTANCE_PROFILE_COUNT`).
pub const CI_PROFILES: u32 = 9;
/// `NVML_GPU_RECOVERY_ACTION_NONE`.
pub const RECOVER_NOTHING: u32 = 0;
/// `NVML_GPU_RECOVERY_ACTION_GPU_RESET`.
pub const RECOVER_BY_RESET: u32 = 1;
/// `NVML_GPU_RECOVERY_ACTION_NODE_REBOOT`.
pub const RECOVER_BY_REBOOT: u32 = 2;
/// Driver limit of GPU instances a card.
const MOST_INSTANCES: usize = 8;

/// A card.
#[allow(clippy::struct_excessive_bools, reason = "facts that are independent")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Key of its model.
    pub model: String,
    /// Chip and serial data that the UUIDs are made of.
    pub chip: u16,
    /// Per-device identifier, likewise.
    pub pdi: u64,
    /// Minor number.
    pub minor: u32,
    /// Whether physical positions are the logical ones with the halves swapped.
    pub mirrored: bool,
    /// MIG mode in force.
    pub mig: bool,
    /// MIG mode after the next reset.
    pub pending: bool,
    /// GPU instances.
    pub instances: Vec<Instance>,
    /// Number of instances ever made: a handle is good for one of them only.
    pub serial: u32,
    /// Whether it has fallen off the bus: every call on it is [`GPU_IS_LOST`].
    #[serde(default)]
    pub lost: bool,
    /// `nvmlDeviceGpuRecoveryAction_t`.
    #[serde(default)]
    pub recovery_action: u32,
    /// Rows of its memory that were remapped.
    #[serde(default)]
    pub remapped: Remapped,
}

/// Rows of memory that were replaced by spare ones after errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remapped {
    /// Rows remapped after correctable errors.
    pub correctable: u32,
    /// Rows remapped after uncorrectable errors.
    pub uncorrectable: u32,
    /// Whether one takes effect only at the next reset.
    pub pending: bool,
    /// Whether one failed: no spare row was left.
    pub failed: bool,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Physical id.
    pub id: u32,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// Which one it is of all that were ever made.
    pub serial: u32,
    /// Compute instances.
    pub compute: Vec<Compute>,
}

/// A compute instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// Id in its GPU instance.
    pub id: u32,
    /// Constant and id of its profile.
    pub profile: u32,
    /// Compute slices.
    pub slices: u8,
    /// First compute slice in the GPU instance.
    pub start: u8,
    /// Multiprocessors.
    pub sm: u32,
}

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

impl Card {
    /// The card's model.
    pub fn model(&self) -> &'static Model {
        model(&self.model).expect("cards are made of known models only")
    }

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
    fn instance_id(&self, start: u8, size: u8) -> u32 {
        let parts = self.model().memory_slices / size;
        let base = u32::from(parts) - 1;
        if size == self.model().memory_slices {
            0
        } else {
            base + u32::from(self.physical(start) / size)
        }
    }

    /// The instance of that id.
    pub fn instance(&self, id: u32) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

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

    /// Makes an instance where the driver likes: where most (profile, start) pairs remain, then the lowest start;
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

    /// All MIG devices in the order of their indices: by GPU instance id, then compute instance id.
    pub fn mig_devices(&self) -> impl Iterator<Item = (&Instance, &Compute)> {
        self.instances
            .iter()
            .flat_map(|i| i.compute.iter().map(move |c| (i, c)))
    }

    /// Sets the MIG mode; `Ok` is the activation status.
    pub fn set_mig(&mut self, on: bool, held: bool) -> Result<Code, Code> {
        if !on && !self.instances.is_empty() {
            return Err(IN_USE);
        }
        if held && self.mig != on {
            if !self.model().is_ampere() {
                return Err(IN_USE);
            }
            self.pending = on;
            return Ok(IN_USE);
        }
        self.pending = on;
        if self.mig != on && self.model().is_ampere() {
            self.reset();
        }
        self.mig = on;
        Ok(SUCCESS)
    }

    /// A GPU reset: instances are lost; the pending mode and pending remappings take effect, and it repairs what a
    /// reset can repair.
    pub fn reset(&mut self) {
        self.instances.clear();
        self.mig = self.pending;
        self.remapped.pending = false;
        if self.recovery_action != RECOVER_BY_REBOOT {
            self.recovery_action = RECOVER_NOTHING;
        }
    }

    /// A reboot: as a reset, but it repairs all, and only Ampere remembers its mode.
    pub fn reboot(&mut self) {
        self.pending = self.pending && self.model().is_ampere();
        self.reset();
        self.lost = false;
        self.recovery_action = RECOVER_NOTHING;
    }

    /// The card is as healthy as a new one; its instances live on.
    pub fn recover(&mut self) {
        self.lost = false;
        self.recovery_action = RECOVER_NOTHING;
        self.remapped = Remapped::default();
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
    use super::*;

    pub(crate) fn card(key: &str) -> Card {
        Card {
            model: key.to_owned(),
            chip: 0x170,
            pdi: 0x0123_4567_89ab_cdef,
            minor: 0,
            mirrored: false,
            mig: true,
            pending: true,
            instances: vec![],
            serial: 0,
            lost: false,
            recovery_action: RECOVER_NOTHING,
            remapped: Remapped::default(),
        }
    }

    #[test]
    fn uuids_are_the_kernels() {
        let mut card = card("A100-SXM4-80GB");
        assert_eq!(card.uuid(), "GPU-1f009f4d-c4d4-5e43-8251-b910b42c5631");
        card.create_at(9, 0, 4).unwrap();
        card.create_compute(1, 2).unwrap();
        let uuid = |card: &Card| {
            let (instance, compute) = card.mig_devices().next().unwrap();
            card.mig_uuid(instance, compute)
        };
        let first = uuid(&card);
        assert_eq!(first, "MIG-a7231aed-2145-543b-b560-ce6ff09b8830");
        // The same place with another profile: the same UUID (mig.md section 6).
        card.destroy_compute(1, 0).unwrap();
        card.destroy(1).unwrap();
        card.create_at(5, 0, 4).unwrap();
        card.create_compute(1, 3).unwrap();
        assert_eq!(uuid(&card), first);
    }

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
            serde_json::from_str(include_str!("../tests/traces.json")).unwrap();
        let mut tried = 0;
        for trace in traces {
            if model(&trace.model).is_none() {
                continue;
            }
            let mut card = card(&trace.model);
            card.mirrored = trace.mirrored;
            let ids: Vec<_> = trace
                .profile_ids
                .iter()
                .map(|id| card.create(*id).ok())
                .collect();
            assert_eq!(ids, trace.gi_ids, "{} {:?}", trace.model, trace.profile_ids);
            tried += 1;
        }
        assert!(tried >= 10, "{tried} traces");
    }

    #[test]
    fn taken_used_up_and_fragmented_are_the_same_error_and_an_illegal_start_another() {
        let mut card = card("A100-SXM4-80GB");
        assert_eq!(card.create_at(9, 2, 4), Err(INVALID_ARGUMENT));
        assert_eq!(card.create_at(9, 0, 2), Err(INVALID_ARGUMENT));
        assert_eq!(card.create_at(77, 0, 1), Err(INVALID_ARGUMENT));
        card.create_at(19, 0, 1).unwrap();
        assert_eq!(card.create_at(9, 0, 4), Err(INSUFFICIENT_RESOURCES));
        card.create_at(19, 4, 1).unwrap();
        assert_eq!(
            card.create(9),
            Err(INSUFFICIENT_RESOURCES),
            "6 slices are free, no half"
        );
        card.create_at(20, 1, 1).unwrap();
        assert_eq!(
            card.create(20),
            Err(INSUFFICIENT_RESOURCES),
            "+me is one per GPU"
        );
        card.mig = false;
        assert_eq!(card.create(19), Err(NOT_SUPPORTED));
    }

    #[test]
    fn media_engines_limit_where_slices_do_not() {
        let mut a30 = card("A30-24GB");
        a30.create_at(21, 0, 1).unwrap();
        assert_eq!(
            a30.create_at(6, 2, 2),
            Err(INSUFFICIENT_RESOURCES),
            "1g+me and 2g+me"
        );
        let mut rtx = card("RTX-PRO-6000-Blackwell-Server");
        rtx.create_at(65, 0, 3).unwrap();
        assert_eq!(
            rtx.create(14),
            Err(INSUFFICIENT_RESOURCES),
            "+me.all excludes all but -me"
        );
        rtx.create(67).unwrap();
    }

    #[test]
    fn a_compute_instance_holds_its_gpu_instance() {
        let mut card = card("H100-SXM5-80GB");
        let id = card.create_at(15, 6, 2).unwrap();
        let instance = card.instance(id).unwrap().clone();
        let profile = |constant| card.compute_profile(&instance, constant);
        assert_eq!(
            (profile(0).unwrap().sm, profile(7).unwrap().sm),
            (16, 26),
            "both sizes in a REV2 instance"
        );
        assert_eq!(
            (profile(1), profile(9)),
            (Err(NOT_SUPPORTED), Err(INVALID_ARGUMENT))
        );
        card.create_compute(id, 7).unwrap();
        assert_eq!(card.create_compute(id, 7), Err(INSUFFICIENT_RESOURCES));
        assert_eq!(card.destroy(id), Err(IN_USE));
        card.destroy_compute(id, 0).unwrap();
        card.destroy(id).unwrap();
        assert_eq!(card.destroy(id), Err(INVALID_ARGUMENT));
    }

    #[test]
    fn ampere_waits_for_a_reset_where_hopper_refuses() {
        let mut ampere = card("A30-24GB");
        assert_eq!(ampere.set_mig(false, true), Ok(IN_USE));
        assert_eq!((ampere.mig, ampere.pending), (true, false));
        ampere.reset();
        assert!(!ampere.mig);
        assert_eq!(ampere.set_mig(true, false), Ok(SUCCESS));
        ampere.reboot();
        assert!(ampere.mig, "Ampere remembers");
        let mut hopper = card("H100-SXM5-80GB");
        assert_eq!(hopper.set_mig(false, true), Err(IN_USE));
        hopper.create(19).unwrap();
        assert_eq!(hopper.set_mig(false, false), Err(IN_USE), "instances exist");
        hopper.reboot();
        assert_eq!(
            (hopper.mig, hopper.instances.len()),
            (false, 0),
            "Hopper forgets"
        );
    }

    #[test]
    fn a_reset_repairs_what_it_can_and_a_reboot_the_rest() {
        let broken = |key: &str, recovery_action: u32| {
            let mut card = card(key);
            (card.lost, card.recovery_action) = (true, recovery_action);
            (card.remapped.uncorrectable, card.remapped.pending) = (1, true);
            card
        };
        let health = |card: &Card| {
            (
                card.lost,
                card.recovery_action,
                card.remapped.pending,
                card.remapped.uncorrectable,
            )
        };
        let mut hopper = broken("H100-SXM5-80GB", RECOVER_BY_RESET);
        hopper.set_mig(false, false).unwrap();
        assert_eq!(
            health(&hopper),
            (true, 1, true, 1),
            "its mode needs no reset"
        );
        hopper.reset();
        assert_eq!(health(&hopper), (true, 0, false, 1));
        let mut ampere = broken("A30-24GB", RECOVER_BY_RESET);
        ampere.set_mig(true, false).unwrap();
        assert_eq!(health(&ampere), (true, 1, true, 1), "nothing changes");
        ampere.set_mig(false, false).unwrap();
        assert_eq!(health(&ampere), (true, 0, false, 1), "a mode is a reset");
        let mut worse = broken("A30-24GB", RECOVER_BY_REBOOT);
        worse.reset();
        assert_eq!(health(&worse), (true, 2, false, 1));
        worse.reboot();
        assert_eq!(health(&worse), (false, 0, false, 1));
    }

    proptest::proptest! {
        #[test]
        fn no_sequence_breaks_the_card(
            which in 0..crate::model::models().len(),
            steps in proptest::collection::vec((0..12usize, 0..12u8, proptest::bool::ANY), 1..40),
        ) {
            let mut card = card(&crate::model::models()[which].key);
            let model = card.model();
            for (profile, start, create) in steps {
                let profile = &model.profiles[profile % model.profiles.len()];
                if create {
                    let _ = card.create_at(profile.id, start, profile.size);
                } else if let Some(first) = card.instances.first() {
                    card.destroy(first.id).unwrap();
                }
                let mut taken = [false; 12];
                for instance in &card.instances {
                    let profile = model.by_id(instance.profile_id).unwrap();
                    assert!(profile.starts.contains(&instance.start));
                    for slice in instance.start..instance.start + instance.size {
                        assert!(!std::mem::replace(&mut taken[usize::from(slice)], true));
                    }
                }
                let mut ids: Vec<_> = card.instances.iter().map(|i| i.id).collect();
                ids.dedup();
                assert_eq!(ids.len(), card.instances.len(), "ids are unique");
                for profile in &model.profiles {
                    let room = profile.starts.iter().any(|s| card.obstacle(profile, *s).is_none());
                    assert_eq!(card.remaining(profile) > 0, room);
                }
            }
        }
    }
}
