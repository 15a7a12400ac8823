//! The two ways a GPU is shared.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How a GPU is shared: the values of the annotation and node label `nvidia.com/vgpu-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VgpuMode {
    /// Hardware partitions: each device is a MIG instance made for its container.
    Mig,
    /// Software shares of a whole GPU, enforced by `HAMi`-core's `libvgpu.so`.
    HamiCore,
}

impl VgpuMode {
    /// Every mode, in the order of isolation.
    pub const ALL: [Self; 2] = [Self::Mig, Self::HamiCore];
}

impl fmt::Display for VgpuMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mig => "mig",
            Self::HamiCore => "hami-core",
        })
    }
}

/// A text that names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no vGPU mode; write \"mig\" or \"hami-core\"")]
pub struct UnknownMode(pub String);

impl FromStr for VgpuMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed() {
        for mode in VgpuMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.to_string());
        }
    }

    #[test]
    fn a_slip_is_named() {
        let error = "migg".parse::<VgpuMode>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""migg" is no vGPU mode; write "mig" or "hami-core""#
        );
    }
}
