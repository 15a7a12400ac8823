//! The first GPU of the simulated node, by raw calls of the ABI.

use std::ptr;

use nvml_sim::{built_library, event::XID};
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t,
    nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
};

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const UNINITIALIZED: u32 = 1;
pub(crate) const INVALID_ARGUMENT: u32 = 2;
pub(crate) const TIMEOUT: u32 = 10;
pub(crate) const GPU_IS_LOST: u32 = 15;
pub(crate) const IN_USE: u32 = 19;
pub(crate) const INSUFFICIENT_RESOURCES: u32 = 23;
/// `info.id` of 1g.10gb on an A100.
pub(crate) const ONE_SLICE: u32 = 19;

/// The first GPU, by raw calls.
pub(crate) struct Gpu {
    pub(crate) lib: NvmlLib,
    pub(crate) device: nvmlDevice_t,
}

impl Gpu {
    pub(crate) fn open() -> Self {
        // SAFETY: the library is ours and its functions take what the bindings say; handles are plain values.
        unsafe {
            let lib = NvmlLib::new(built_library().unwrap()).unwrap();
            assert_eq!(lib.nvmlInit_v2(), SUCCESS);
            let mut device = ptr::null_mut();
            assert_eq!(
                lib.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device),
                SUCCESS
            );
            Self { lib, device }
        }
    }

    pub(crate) fn create(
        &self,
        profile: u32,
        start: u32,
        size: u32,
    ) -> Result<nvmlGpuInstance_t, u32> {
        let at = nvmlGpuInstancePlacement_t { start, size };
        let mut gi = ptr::null_mut();
        // SAFETY: as in `open`; the pointers are to locals.
        let code = unsafe {
            self.lib.nvmlDeviceCreateGpuInstanceWithPlacement(
                self.device,
                profile,
                &raw const at,
                &raw mut gi,
            )
        };
        if code == SUCCESS { Ok(gi) } else { Err(code) }
    }

    pub(crate) fn create_compute(&self, gi: nvmlGpuInstance_t) -> nvmlComputeInstance_t {
        let mut ci = ptr::null_mut();
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlGpuInstanceCreateComputeInstance(gi, 0, &raw mut ci)
        };
        assert_eq!(code, SUCCESS);
        ci
    }

    pub(crate) fn destroy(&self, gi: nvmlGpuInstance_t) -> u32 {
        // SAFETY: as in `create`; a stale handle is an error of the library.
        unsafe { self.lib.nvmlGpuInstanceDestroy(gi) }
    }

    pub(crate) fn destroy_compute(&self, ci: nvmlComputeInstance_t) -> u32 {
        // SAFETY: as in `destroy`.
        unsafe { self.lib.nvmlComputeInstanceDestroy(ci) }
    }

    pub(crate) fn id(&self, gi: nvmlGpuInstance_t) -> Result<u32, u32> {
        // SAFETY: a plain C struct, for which zeros are a value; then as in `destroy`.
        unsafe {
            let mut info: nvmlGpuInstanceInfo_t = std::mem::zeroed();
            match self.lib.nvmlGpuInstanceGetInfo(gi, &raw mut info) {
                SUCCESS => Ok(info.id),
                code => Err(code),
            }
        }
    }

    /// UUID and MiB of the first MIG device, as nvml-wrapper shows them.
    pub(crate) fn first() -> (String, u64) {
        let nvml = Nvml::builder()
            .lib_path(built_library().unwrap().as_ref())
            .init()
            .unwrap();
        let gpu = nvml.device_by_index(0).unwrap();
        let mig =
            (0..gpu.mig_device_count().unwrap()).find_map(|at| gpu.mig_device_by_index(at).ok());
        let mig = mig.unwrap();
        (mig.uuid().unwrap(), mig.memory_info().unwrap().total >> 20)
    }

    pub(crate) fn set_mig(&self, on: u32) -> (u32, u32) {
        let mut status = 0;
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlDeviceSetMigMode(self.device, on, &raw mut status)
        };
        (code, status)
    }

    pub(crate) fn mig(&self) -> (u32, u32) {
        let (mut current, mut pending) = (9, 9);
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlDeviceGetMigMode(self.device, &raw mut current, &raw mut pending)
        };
        assert_eq!(code, SUCCESS);
        (current, pending)
    }

    /// A set that is registered for a device's events.
    pub(crate) fn register(&self, device: nvmlDevice_t, kinds: u64) -> Result<nvmlEventSet_t, u32> {
        let mut set = ptr::null_mut();
        // SAFETY: as in `create`.
        let code = unsafe {
            assert_eq!(self.lib.nvmlEventSetCreate(&raw mut set), SUCCESS);
            self.lib.nvmlDeviceRegisterEvents(device, kinds, set)
        };
        if code == SUCCESS { Ok(set) } else { Err(code) }
    }

    /// The next event: data, GPU instance and compute instance.
    pub(crate) fn wait(
        &self,
        set: nvmlEventSet_t,
        timeout_ms: u32,
    ) -> Result<(u64, u32, u32), u32> {
        // SAFETY: a plain C struct, for which zeros are a value; then as in `create`.
        unsafe {
            let mut event: nvmlEventData_t = std::mem::zeroed();
            match self
                .lib
                .nvmlEventSetWait_v2(set, &raw mut event, timeout_ms)
            {
                SUCCESS => {
                    assert_eq!((event.device, event.eventType), (self.device, XID));
                    Ok((
                        event.eventData,
                        event.gpuInstanceId,
                        event.computeInstanceId,
                    ))
                }
                code => Err(code),
            }
        }
    }

    pub(crate) fn shutdown(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { self.lib.nvmlShutdown() }
    }
}
