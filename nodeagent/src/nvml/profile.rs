//! What a GPU offers: GPU instance profiles with their legal starts.

use std::ptr;

use domain::gpu::{Model, Offer};
use nvml_wrapper_sys::bindings as sys;

use super::{
    data::MemorySource,
    error::{Code, NvmlError, call},
    session::{Session, c_text, text, version},
    survey::SurveyOptions,
};

/// Limit of the loop over profile constants, in case the library never reports that there are no more.
const MAX_PROFILES: u32 = 64;

/// Names of the profile constants' attributes, for drivers that do not report the profile's name.
/// NVML header: `NVML_GPU_INSTANCE_PROFILE_*`.
fn attribute(constant: u32) -> &'static str {
    match constant {
        7 | 8 => "+me",
        0xa..=0xc | 0x11 => "+gfx",
        0xd | 0xe => "-me",
        0xf | 0x10 => "+me.all",
        _ => "",
    }
}

impl Session {
    pub(super) fn product_name(&self, device: sys::nvmlDevice_t) -> Result<String, NvmlError> {
        text(96, |buffer, length| {
            call!(self, nvmlDeviceGetName(device, buffer, length))
        })
    }

    /// Memory and offers of a GPU of that name.
    ///
    /// The scheduler knows models by their names: one whose memory does not come from NVML has a name of its own, so
    /// that it is not taken for another GPU of the node.
    pub(super) fn model(
        &self,
        device: sys::nvmlDevice_t,
        name: &str,
        mig: bool,
        options: SurveyOptions<'_>,
    ) -> Result<(Model, MemorySource), NvmlError> {
        let (name, memory_mib, source) = match (self.memory_mib(device)?, options.memory_mib) {
            (Some(mib), _) => (name.to_owned(), mib, MemorySource::Nvml),
            (None, Some(mib)) => {
                let name = format!("{name} (memory set to {mib} MiB)");
                (name, mib, MemorySource::Settings)
            }
            (None, None) => {
                let name = format!("{name} (memory unknown)");
                (name, 0, MemorySource::Unknown)
            }
        };
        let offers = if mig {
            self.offers(device, memory_mib)?
        } else {
            vec![]
        };
        let whole = offers
            .iter()
            .max_by_key(|offer| (offer.size, offer.compute_slices));
        let model = Model {
            name,
            memory_mib,
            memory_slices: whole.map_or(0, |offer| offer.size),
            compute_slices: whole.map_or(0, |offer| offer.compute_slices),
            offers,
        };
        Ok((model, source))
    }

    /// Memory of the GPU; `None` where NVML cannot report it (GB10, Jetson Thor: unified memory).
    fn memory_mib(&self, device: sys::nvmlDevice_t) -> Result<Option<u64>, NvmlError> {
        let mut memory = sys::nvmlMemory_st {
            total: 0,
            free: 0,
            used: 0,
        };
        match call!(self, nvmlDeviceGetMemoryInfo(device, &raw mut memory)) {
            Ok(()) => Ok(Some(memory.total >> 20)),
            Err(error) if error.code() == Some(Code::NOT_SUPPORTED) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn offers(&self, device: sys::nvmlDevice_t, total_mib: u64) -> Result<Vec<Offer>, NvmlError> {
        let mut offers: Vec<Offer> = Vec::new();
        for constant in 0..MAX_PROFILES {
            // SAFETY: a plain C struct, for which zeros are a value.
            let mut info: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
            match call!(
                self,
                nvmlDeviceGetGpuInstanceProfileInfo(device, constant, &raw mut info)
            ) {
                Ok(()) => {}
                Err(error) if error.code() == Some(Code::NOT_SUPPORTED) => continue,
                Err(error) if error.code() == Some(Code::INVALID_ARGUMENT) => break,
                Err(error) => return Err(error),
            }
            let placements = self.placements(device, info.id)?;
            let Some(size) = placements.first().map(|placement| placement.size) else {
                continue;
            };
            let name = self
                .profile_name(device, constant)
                .unwrap_or_else(|| nominal_name(constant, &info, total_mib));
            offers.push(Offer {
                profile: name,
                profile_id: info.id,
                memory_mib: info.memorySizeMB,
                multiprocessors: info.multiprocessorCount,
                compute_slices: narrow(info.sliceCount),
                size: narrow(size),
                starts: {
                    let mut starts: Vec<_> = placements.iter().map(|p| narrow(p.start)).collect();
                    starts.sort_unstable();
                    starts
                },
                max_count: narrow(info.instanceCount),
            });
        }
        Ok(offers)
    }

    /// The driver's own name of a profile, from the versioned struct.
    fn profile_name(&self, device: sys::nvmlDevice_t, constant: u32) -> Option<String> {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_v2_t = unsafe { std::mem::zeroed() };
        info.version = version::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2);
        call!(
            self,
            nvmlDeviceGetGpuInstanceProfileInfoV(device, constant, &raw mut info)
        )
        .ok()?;
        let bytes: Vec<u8> = info.name.iter().map(|c| c.to_ne_bytes()[0]).collect();
        let name = c_text(&bytes);
        let name = name.strip_prefix("MIG ").unwrap_or(&name);
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// All legal placements of a profile, whatever is occupied (`..PossiblePlacements_v2`).
    fn placements(
        &self,
        device: sys::nvmlDevice_t,
        profile_id: u32,
    ) -> Result<Vec<sys::nvmlGpuInstancePlacement_t>, NvmlError> {
        let mut count = 0;
        call!(
            self,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(
                device,
                profile_id,
                ptr::null_mut(),
                &raw mut count
            )
        )?;
        let mut placements =
            vec![sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 }; count as usize];
        call!(
            self,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(
                device,
                profile_id,
                placements.as_mut_ptr(),
                &raw mut count
            )
        )?;
        placements.truncate(count as usize);
        Ok(placements)
    }
}

/// The name by go-nvlib's rule (`mig_profile.go`): gigabytes are eighths of the GPU, rounded.
fn nominal_name(constant: u32, info: &sys::nvmlGpuInstanceProfileInfo_t, total_mib: u64) -> String {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes in MiB are small and positive"
    )]
    let gb = {
        let eighths = (info.memorySizeMB as f64 / total_mib.max(1) as f64 * 8.0).ceil() / 8.0;
        (eighths * (total_mib as f64 / 1024.0).ceil()).round() as u64
    };
    format!("{}g.{gb}gb{}", info.sliceCount, attribute(constant))
}

/// Slice numbers and counts are far below 256; more is a broken library and ends as "none".
pub(super) fn narrow(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(0)
}
