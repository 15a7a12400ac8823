//! Device numbers that the NVIDIA driver publishes in `/proc`.

use std::path::PathBuf;

use crate::kubelet::cdi::error::CdiError;

/// The driver's part of `/proc`: `devices` and `driver/nvidia`.
#[derive(Clone, Debug)]
pub(crate) struct DriverProc(pub(crate) PathBuf);

impl DriverProc {
    /// The major number of a character device, from `/proc/devices`.
    pub(crate) fn major_number(&self, driver: &str) -> Result<u32, CdiError> {
        let path = self.0.join("devices");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .take_while(|line| !line.starts_with("Block"))
            .find_map(|line| {
                let (major, name) = line.trim().split_once(' ')?;
                (name == driver).then(|| major.parse().ok()).flatten()
            })
            .ok_or(CdiError::MissingFact {
                path,
                what: format!("the major number of {driver}"),
            })
    }

    /// The minor number of a MIG capability: `instance` is `gi13` or `gi13/ci0`.
    pub(crate) fn capability_minor(&self, gpu_minor: u32, instance: &str) -> Result<u32, CdiError> {
        let path = self.0.join(format!(
            "driver/nvidia/capabilities/gpu{gpu_minor}/mig/{instance}/access"
        ));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
            .ok_or(CdiError::MissingFact {
                path,
                what: "the minor number of a capability".to_owned(),
            })
    }
}
