//! What a fault means: what is unhealthy because of it, and which recovery makes it healthy again. Pure.
//!
//! | fault | scope | consequence |
//! | --- | --- | --- |
//! | XID 13, 31, 43, 45, 68, 69, 109, 137 | the application's | its pod gets an Event; the GPU is healthy |
//! | XID 63, 92, 154 | a note of the driver | the GPU is surveyed; the XID alone does not make it unhealthy |
//! | XID 94 | a memory error that took down one application | no other pod gets its instance |
//! | any other XID or a double bit ECC error that NVML ascribes to an instance | the instance's | the same |
//! | any other XID, a double bit ECC error | the GPU's | it is unhealthy until it is reset, or the driver requests no recovery any more |
//! | recovery action, failed row remapping | the GPU's | it is unhealthy while NVML reports this |
//! | no answer | the GPU's | it is unhealthy until it answers |
//!
//! Sources: NVIDIA's XID catalog (docs.nvidia.com/deploy/xid-errors), the list of application errors of NVIDIA's
//! k8s-device-plugin (`internal/rm/health.go`), NVML's header (`nvmlDeviceGpuRecoveryAction_t`).

use std::{collections::BTreeSet, convert::Infallible, str::FromStr};

use crate::nvml::data::{FaultKind, Health, Recovery};

/// What a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The application that caused it; the hardware is healthy.
    Application,
    /// Nothing; the driver only notes it.
    Note,
    /// One instance, if NVML names it; the rest of the GPU is healthy.
    Instance,
    /// The whole GPU.
    Gpu,
}

/// The known XIDs with their scope and meaning.
const KNOWN: [(u64, Scope, &str); 22] = [
    (13, Scope::Application, "graphics engine exception"),
    (31, Scope::Application, "GPU memory page fault"),
    (43, Scope::Application, "GPU stopped processing"),
    (45, Scope::Application, "cleanup after an earlier error"),
    (68, Scope::Application, "video processor exception"),
    (69, Scope::Application, "graphics engine class error"),
    (109, Scope::Application, "context switch timeout"),
    (137, Scope::Application, "NVLink privilege error"),
    (63, Scope::Note, "row remapping recorded"),
    (92, Scope::Note, "many corrected memory errors"),
    (154, Scope::Note, "recovery action changed"),
    (94, Scope::Instance, "contained memory error"),
    (48, Scope::Gpu, "double bit ECC error"),
    (62, Scope::Gpu, "halt of an internal micro-controller"),
    (64, Scope::Gpu, "row remapping failed"),
    (74, Scope::Gpu, "NVLink error"),
    (79, Scope::Gpu, "the GPU has fallen off the bus"),
    (95, Scope::Gpu, "uncontained memory error"),
    (119, Scope::Gpu, "timeout of the GPU's system processor"),
    (120, Scope::Gpu, "error of the GPU's system processor"),
    (140, Scope::Gpu, "unrecovered ECC error"),
    (143, Scope::Gpu, "initialisation error"),
];

/// Faults that are ignored: the values of NVIDIA's `DP_DISABLE_HEALTHCHECKS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredFaults {
    all: bool,
    xids: BTreeSet<u64>,
}

impl IgnoredFaults {
    /// Whether all faults are ignored.
    pub fn ignores_all(&self) -> bool {
        self.all
    }
}

/// `all` or `xids` for all of them, else a list separated by commas. Like NVIDIA's plugin it skips what is not a number.
impl FromStr for IgnoredFaults {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let words = || text.split(',').map(str::trim);
        Ok(Self {
            all: words().any(|word| matches!(word, "all" | "xids")),
            xids: words().filter_map(|word| word.parse().ok()).collect(),
        })
    }
}

/// The scope and the meaning of a fault. An unknown XID affects the whole GPU.
pub fn classify(fault: FaultKind, ignored: &IgnoredFaults) -> (Scope, String) {
    let xid = match fault {
        FaultKind::Xid(xid) => xid,
        FaultKind::DoubleBitEcc => return (Scope::Gpu, "double bit ECC error".to_owned()),
    };
    let known = KNOWN.iter().find(|(known, ..)| *known == xid);
    let (scope, words) = known.map_or((Scope::Gpu, "unknown"), |(_, scope, words)| {
        (*scope, *words)
    });
    let scope = if ignored.all || ignored.xids.contains(&xid) {
        Scope::Note
    } else {
        scope
    };
    (scope, format!("XID {xid}, {words}"))
}

/// Why a GPU is unhealthy by what the driver reports; `None`: it is healthy.
pub fn unhealthy_reason(health: &Health) -> Option<String> {
    if health.row_remapping_failed {
        return Some("row remapping failed; the GPU has to be replaced".to_owned());
    }
    match health.recovery? {
        Recovery::None | Recovery::DrainP2p => None,
        Recovery::Reset => Some("the driver requests a GPU reset".to_owned()),
        Recovery::Reboot => Some("the driver requests a reboot of the node".to_owned()),
        Recovery::DrainAndReset => {
            Some("the driver requests a GPU reset once its pods have ended".to_owned())
        }
        Recovery::Other(action) => Some(format!(
            "the driver requests an unknown recovery ({action})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applications_fault_is_not_the_gpus() {
        let none = IgnoredFaults::default();
        let scope = |xid| classify(FaultKind::Xid(xid), &none).0;
        // The list of NVIDIA's k8s-device-plugin.
        for xid in [13, 31, 43, 45, 68, 109] {
            assert_eq!(scope(xid), Scope::Application, "{xid}");
        }
        assert_eq!(scope(94), Scope::Instance);
        for xid in [48, 79, 95, 119, 4711] {
            assert_eq!(scope(xid), Scope::Gpu, "{xid}");
        }
        assert_eq!(classify(FaultKind::DoubleBitEcc, &none).0, Scope::Gpu);
        let (_, words) = classify(FaultKind::Xid(79), &none);
        assert_eq!(words, "XID 79, the GPU has fallen off the bus");
        let mut known: Vec<_> = KNOWN.iter().map(|(xid, ..)| xid).collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), KNOWN.len(), "one is listed twice");
    }

    #[test]
    fn nvidias_variable_is_understood() {
        let ignored = |text: &str| text.parse::<IgnoredFaults>().unwrap();
        assert!(ignored("all").ignores_all() && ignored("xids").ignores_all());
        let some = ignored("79, 95,x");
        assert!(!some.ignores_all());
        assert_eq!(classify(FaultKind::Xid(95), &some).0, Scope::Note);
        assert_eq!(classify(FaultKind::Xid(48), &some).0, Scope::Gpu);
        assert_eq!(ignored(""), IgnoredFaults::default());
    }

    #[test]
    fn a_gpu_is_unhealthy_while_the_driver_requests_a_recovery() {
        let health = |recovery| Health {
            recovery,
            row_remapping_failed: false,
        };
        assert_eq!(unhealthy_reason(&health(None)), None);
        assert_eq!(unhealthy_reason(&health(Some(Recovery::None))), None);
        assert_eq!(unhealthy_reason(&health(Some(Recovery::DrainP2p))), None);
        assert!(unhealthy_reason(&health(Some(Recovery::Reset))).is_some());
        let failed = Health {
            recovery: Some(Recovery::None),
            row_remapping_failed: true,
        };
        assert!(unhealthy_reason(&failed).unwrap().contains("replaced"));
    }
}
