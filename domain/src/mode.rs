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

/// How an admin wants GPUs to work: the values of the node label `nvidia.com/vgpu-mode` and of `operatingmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// All of them as MIG instances.
    Mig,
    /// All of them as software shares.
    HamiCore,
    /// As the pods need them: an idle GPU changes its mode for a pod that fits nowhere else.
    Auto,
}

impl NodeMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Mig, Self::HamiCore, Self::Auto];

    /// The one mode that is wanted; `None` for `auto`.
    pub fn fixed(self) -> Option<VgpuMode> {
        match self {
            Self::Mig => Some(VgpuMode::Mig),
            Self::HamiCore => Some(VgpuMode::HamiCore),
            Self::Auto => None,
        }
    }
}

impl fmt::Display for NodeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fixed() {
            Some(mode) => mode.fmt(f),
            None => f.write_str("auto"),
        }
    }
}

/// A text that is not a mode of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a vGPU mode of a node; write \"mig\", \"hami-core\" or \"auto\"")]
pub struct UnknownNodeMode(pub String);

impl FromStr for NodeMode {
    type Err = UnknownNodeMode;

    fn from_str(text: &str) -> Result<Self, UnknownNodeMode> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| UnknownNodeMode(text.to_owned()))
    }
}

/// A text that is not a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a vGPU mode; write \"mig\" or \"hami-core\"")]
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

/// Who chose a pod's mode: the values of the annotation `tessera.dev/vgpu-mode-by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChosenBy {
    /// The pod's author, by the annotation `nvidia.com/vgpu-mode`: the mode is a constraint.
    User,
    /// The webhook: the mode is a hint, and planning may choose the other one.
    Tessera,
}

impl ChosenBy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::User, Self::Tessera];

    /// The value of the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Tessera => "tessera",
        }
    }
}

impl fmt::Display for ChosenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is neither `user` nor `tessera`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} did not choose the mode; write \"user\" or \"tessera\"")]
pub struct UnknownChooser(pub String);

impl FromStr for ChosenBy {
    type Err = UnknownChooser;

    fn from_str(text: &str) -> Result<Self, UnknownChooser> {
        Self::ALL
            .into_iter()
            .find(|who| who.as_str() == text)
            .ok_or_else(|| UnknownChooser(text.to_owned()))
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
        for mode in NodeMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.to_string());
        }
        for who in ChosenBy::ALL {
            assert_eq!(who.to_string().parse(), Ok(who));
        }
        assert!("tesera".parse::<ChosenBy>().is_err());
    }

    #[test]
    fn a_slip_is_named() {
        let error = "migg".parse::<VgpuMode>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""migg" is not a vGPU mode; write "mig" or "hami-core""#
        );
        let error = "both".parse::<NodeMode>().unwrap_err().to_string();
        assert!(error.contains(r#""mig", "hami-core" or "auto""#), "{error}");
    }
}
