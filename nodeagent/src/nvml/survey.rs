//! The survey: everything about every GPU, read anew.

use std::ptr;

use domain::config::FilterDevices;

use super::{
    data::SurveyedGpu,
    error::{NvmlError, call},
    session::Session,
};

/// The result of a survey.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The GPUs that answered.
    pub(crate) gpus: Vec<SurveyedGpu>,
    /// Index and error of those that did not.
    pub(crate) failed: Vec<(u32, NvmlError)>,
}

impl Session {
    /// Reads everything about every GPU that the filter leaves. One that fails does not keep the others from being read.
    pub(crate) fn survey(&self, filter: &FilterDevices) -> Result<Survey, NvmlError> {
        self.handles.borrow_mut().clear();
        let mut count = 0;
        call!(self, nvmlDeviceGetCount_v2(&raw mut count))?;
        let mut gpus = Vec::new();
        let mut failed = Vec::new();
        for index in 0..count {
            if filter.index.contains(&index) {
                continue;
            }
            match self.survey_gpu(index, filter) {
                Ok(gpu) => gpus.extend(gpu),
                Err(error) => failed.push((index, error)),
            }
        }
        Ok(Survey { gpus, failed })
    }

    fn survey_gpu(
        &self,
        index: u32,
        filter: &FilterDevices,
    ) -> Result<Option<SurveyedGpu>, NvmlError> {
        let mut device = ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2(index, &raw mut device))?;
        let uuid = self.uuid(device)?;
        if filter.excludes(index, &uuid) {
            return Ok(None);
        }
        self.handles.borrow_mut().insert(uuid.clone(), device);
        let mig = self.mig_mode(device)?;
        let model = self.model(device, mig.is_some())?;
        let mut minor = 0;
        call!(self, nvmlDeviceGetMinorNumber(device, &raw mut minor))?;
        let mut numa = 0;
        let numa = call!(self, nvmlDeviceGetNumaNodeId(device, &raw mut numa)).map(|()| numa);
        let instances = if mig.is_some_and(|mode| mode.current) {
            self.instances(device, &model)?
        } else {
            vec![]
        };
        Ok(Some(SurveyedGpu {
            index,
            uuid,
            minor,
            numa: numa.ok(),
            model,
            mig,
            health: self.health(device),
            instances,
        }))
    }
}
