//! GPU instances: enumerate, create at a placement, destroy by identity.

use std::ptr;

use domain::gpu::Model;
use nvml_wrapper_sys::bindings as sys;

use super::{
    data::{ComputeInstance, LiveInstance},
    error::{Code, NvmlError, call},
    profile::narrow,
    session::Session,
};

/// `NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED`.
const SHARED_ENGINES: u32 = 0;
/// Limit of the loop over compute instance profile constants, in case the library never ends it.
const MAX_PROFILES: u32 = 32;

impl Session {
    /// All GPU instances of a GPU, listed per profile id: MIG handles would not show one without compute instance.
    pub(super) fn instances(
        &self,
        device: sys::nvmlDevice_t,
        model: &Model,
    ) -> Result<Vec<LiveInstance>, NvmlError> {
        let mut found = Vec::new();
        for offer in &model.offers {
            let mut handles = vec![ptr::null_mut(); usize::from(offer.max_count).max(16)];
            let mut count = u32::try_from(handles.len()).unwrap_or(16);
            match call!(
                self,
                nvmlDeviceGetGpuInstances(
                    device,
                    offer.profile_id,
                    handles.as_mut_ptr(),
                    &raw mut count
                )
            ) {
                Ok(()) => {}
                // The profile cannot be created in the current mode of the GPU.
                Err(error) if error.code() == Some(Code::NOT_SUPPORTED) => continue,
                Err(error) => return Err(error),
            }
            for handle in handles.into_iter().take(count as usize) {
                found.push(self.instance(handle)?);
            }
        }
        found.sort_by_key(|instance| (instance.start, instance.id));
        Ok(found)
    }

    fn instance(&self, handle: sys::nvmlGpuInstance_t) -> Result<LiveInstance, NvmlError> {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self, nvmlGpuInstanceGetInfo(handle, &raw mut info))?;
        let mut compute = Vec::new();
        for (profile_id, most) in self
            .compute_profiles(handle)?
            .iter()
            .map(|p| (p.id, p.instanceCount))
        {
            for ci in self.compute_handles(handle, profile_id, most)? {
                compute.push(self.compute_instance(ci)?);
            }
        }
        compute.sort_by_key(|ci| ci.id);
        compute.dedup_by_key(|ci| ci.id);
        Ok(LiveInstance {
            id: info.id,
            profile_id: info.profileId,
            start: narrow(info.placement.start),
            size: narrow(info.placement.size),
            compute,
        })
    }

    fn compute_handles(
        &self,
        gi: sys::nvmlGpuInstance_t,
        profile_id: u32,
        most: u32,
    ) -> Result<Vec<sys::nvmlComputeInstance_t>, NvmlError> {
        let mut handles = vec![ptr::null_mut(); (most as usize).max(8)];
        let mut count = u32::try_from(handles.len()).unwrap_or(8);
        call!(
            self,
            nvmlGpuInstanceGetComputeInstances(
                gi,
                profile_id,
                handles.as_mut_ptr(),
                &raw mut count
            )
        )?;
        handles.truncate(count as usize);
        Ok(handles)
    }

    fn compute_instance(
        &self,
        handle: sys::nvmlComputeInstance_t,
    ) -> Result<ComputeInstance, NvmlError> {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self, nvmlComputeInstanceGetInfo_v2(handle, &raw mut info))?;
        // `device` is documented as the parent but is the MIG device handle in practice.
        let uuid = self.uuid(info.device)?;
        Ok(ComputeInstance { id: info.id, uuid })
    }

    fn compute_profiles(
        &self,
        gi: sys::nvmlGpuInstance_t,
    ) -> Result<Vec<sys::nvmlComputeInstanceProfileInfo_t>, NvmlError> {
        let mut profiles = Vec::new();
        for constant in 0..MAX_PROFILES {
            // SAFETY: a plain C struct, for which zeros are a value.
            let mut info: sys::nvmlComputeInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
            match call!(
                self,
                nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    gi,
                    constant,
                    SHARED_ENGINES,
                    &raw mut info
                )
            ) {
                Ok(()) => profiles.push(info),
                Err(error) if error.code() == Some(Code::NOT_SUPPORTED) => {}
                Err(error) if error.code() == Some(Code::INVALID_ARGUMENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(profiles)
    }

    /// Creates a GPU instance at exactly this placement (`nvmlDeviceCreateGpuInstanceWithPlacement`). Returns its id.
    pub(crate) fn create_gpu_instance(
        &self,
        uuid: &str,
        profile_id: u32,
        start: u8,
        size: u8,
    ) -> Result<u32, NvmlError> {
        let device = self.device(uuid)?;
        let placement = sys::nvmlGpuInstancePlacement_t {
            start: start.into(),
            size: size.into(),
        };
        let mut gi = ptr::null_mut();
        call!(
            self,
            nvmlDeviceCreateGpuInstanceWithPlacement(
                device,
                profile_id,
                &raw const placement,
                &raw mut gi
            )
        )?;
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self, nvmlGpuInstanceGetInfo(gi, &raw mut info))?;
        Ok(info.id)
    }

    /// Creates the compute instance that takes all of a GPU instance.
    ///
    /// Of the profiles with all of its slices it takes the one with the most multiprocessors: in a double-memory
    /// instance of an H100 this is `1_SLICE_REV1`, not `1_SLICE`. MIG user guide, "compute instances".
    pub(crate) fn create_compute_instance(
        &self,
        uuid: &str,
        id: u32,
    ) -> Result<ComputeInstance, NvmlError> {
        let gi = self.gpu_instance(uuid, id)?;
        let whole = self
            .compute_profiles(gi)?
            .into_iter()
            .max_by_key(|p| (p.multiprocessorCount, std::cmp::Reverse(p.id)))
            .ok_or(NvmlError::NoSuchProfile(format!(
                "compute instance of GPU instance {id}"
            )))?;
        let mut ci = ptr::null_mut();
        call!(
            self,
            nvmlGpuInstanceCreateComputeInstance(gi, whole.id, &raw mut ci)
        )?;
        self.compute_instance(ci)
    }

    /// Destroys a GPU instance with its compute instances, if it still is the one that is meant.
    ///
    /// The driver reuses ids, so profile and placement are compared first. One that is gone already is no error.
    pub(crate) fn destroy(&self, uuid: &str, meant: &LiveInstance) -> Result<(), NvmlError> {
        let gone =
            |error: &NvmlError| matches!(error.code(), Some(Code::NOT_FOUND | Code::NOT_SUPPORTED));
        let gi = match self.gpu_instance(uuid, meant.id) {
            Err(error) if gone(&error) => return Ok(()),
            other => other?,
        };
        let found = self.instance(gi)?;
        if (found.profile_id, found.start, found.size)
            != (meant.profile_id, meant.start, meant.size)
        {
            return Err(NvmlError::Changed {
                id: meant.id,
                found: format!("profile {} at {}", found.profile_id, found.slices()),
            });
        }
        for ci in &found.compute {
            let mut handle = ptr::null_mut();
            call!(
                self,
                nvmlGpuInstanceGetComputeInstanceById(gi, ci.id, &raw mut handle)
            )?;
            call!(self, nvmlComputeInstanceDestroy(handle))?;
        }
        call!(self, nvmlGpuInstanceDestroy(gi))
    }

    /// Handle of a GPU instance.
    pub(super) fn gpu_instance(
        &self,
        uuid: &str,
        id: u32,
    ) -> Result<sys::nvmlGpuInstance_t, NvmlError> {
        let device = self.device(uuid)?;
        let mut gi = ptr::null_mut();
        call!(self, nvmlDeviceGetGpuInstanceById(device, id, &raw mut gi))?;
        Ok(gi)
    }
}
