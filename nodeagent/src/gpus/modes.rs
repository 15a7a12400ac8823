//! The modes in which the admin wants the GPUs to work.

use domain::{config::DeviceMode, mode::NodeMode};

use crate::nvml::data::SurveyedGpu;

/// The modes in which the admin wants the GPUs to work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedModes {
    /// The node's label, or the settings where it has none; `None`: leave the GPUs as they are.
    pub node: Option<NodeMode>,
    /// GPUs for which the settings name another mode.
    pub devices: Vec<DeviceMode>,
}

impl WantedModes {
    /// The mode for one GPU.
    pub(crate) fn for_gpu(&self, gpu: &SurveyedGpu) -> Option<NodeMode> {
        let named = self
            .devices
            .iter()
            .find(|device| device.applies_to(gpu.index, &gpu.uuid));
        named.map(|device| device.operatingmode).or(self.node)
    }
}
