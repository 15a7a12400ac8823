//! The survey: everything about every GPU, read anew.

use std::{path::Path, ptr};

use domain::{config::FilterDevices, gpu::Model};
use nvml_wrapper_sys::bindings as sys;

use super::{
    data::{FoundGpu, Health, MemorySource, SurveyedGpu},
    error::{NvmlError, call},
    numa,
    session::Session,
};

/// The result of a survey.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The GPUs that answered every call.
    pub(crate) gpus: Vec<SurveyedGpu>,
    /// Those that did not.
    pub(crate) failed: Vec<FailedGpu>,
    /// All GPUs that NVML counts.
    pub(crate) found: Vec<FoundGpu>,
}

/// A GPU of which a call failed.
#[derive(Debug)]
pub(crate) struct FailedGpu {
    pub(crate) index: u32,
    pub(crate) error: NvmlError,
    /// What it answered before that call; `None`: not even its UUID.
    pub(crate) partly: Option<Box<SurveyedGpu>>,
}

/// What a survey is told by the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SurveyOptions<'s> {
    /// GPUs that are not surveyed.
    pub(crate) filter: &'s FilterDevices,
    /// MiB of GPUs whose memory NVML cannot report.
    pub(crate) memory_mib: Option<u64>,
    /// `/sys` of the host.
    pub(crate) sysfs: &'s Path,
}

impl Session {
    /// Reads everything about every GPU that the filter leaves. One that fails does not keep the others from being read.
    pub(crate) fn survey(&self, options: SurveyOptions<'_>) -> Result<Survey, NvmlError> {
        self.handles.borrow_mut().clear();
        let mut count = 0;
        call!(self, nvmlDeviceGetCount_v2(&raw mut count))?;
        let mut survey = Survey::default();
        for index in 0..count {
            let mut found = FoundGpu {
                index,
                uuid: None,
                memory: MemorySource::Nvml,
            };
            if !options.filter.index.contains(&index) {
                self.survey_gpu(options, &mut found, &mut survey);
            }
            survey.found.push(found);
        }
        Ok(survey)
    }

    fn survey_gpu(&self, options: SurveyOptions<'_>, found: &mut FoundGpu, survey: &mut Survey) {
        let index = found.index;
        let (device, uuid) = match self.identify(index) {
            Ok(identified) => identified,
            Err(error) => {
                return survey.failed.push(FailedGpu {
                    index,
                    error,
                    partly: None,
                });
            }
        };
        found.uuid = Some(uuid.clone());
        if options.filter.excludes(index, &uuid) {
            return;
        }
        self.handles.borrow_mut().insert(uuid.clone(), device);
        let mut gpu = unread(index, uuid);
        match self.read(device, options, &mut gpu) {
            Ok(memory) => {
                found.memory = memory;
                survey.gpus.push(gpu);
            }
            Err(error) => survey.failed.push(FailedGpu {
                index,
                error,
                partly: Some(Box::new(gpu)),
            }),
        }
    }

    fn identify(&self, index: u32) -> Result<(sys::nvmlDevice_t, String), NvmlError> {
        let mut device = ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2(index, &raw mut device))?;
        Ok((device, self.uuid(device)?))
    }

    /// Fills in what a GPU reports, up to the call that fails.
    fn read(
        &self,
        device: sys::nvmlDevice_t,
        options: SurveyOptions<'_>,
        gpu: &mut SurveyedGpu,
    ) -> Result<MemorySource, NvmlError> {
        gpu.health = self.health(device);
        gpu.model.name = self.product_name(device)?;
        call!(self, nvmlDeviceGetMinorNumber(device, &raw mut gpu.minor))?;
        gpu.numa = numa::of_pci_device(options.sysfs, self.pci_bus_id(device).as_deref())
            .or_else(|| self.numa_by_nvml(device));
        let mig = self.mig_mode(device)?;
        let (model, memory) = self.model(device, &gpu.model.name, mig.is_some(), options)?;
        gpu.model = model;
        if mig.is_some_and(|mode| mode.current) {
            gpu.instances = self.instances(device, &gpu.model)?;
        }
        gpu.mig = mig;
        Ok(memory)
    }
}

/// A GPU of which only the UUID is known.
fn unread(index: u32, uuid: String) -> SurveyedGpu {
    SurveyedGpu {
        index,
        uuid,
        minor: 0,
        numa: None,
        model: Model {
            name: "unknown".to_owned(),
            memory_mib: 0,
            memory_slices: 0,
            compute_slices: 0,
            offers: vec![],
        },
        mig: None,
        health: Health::default(),
        instances: vec![],
    }
}
