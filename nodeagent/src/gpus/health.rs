//! What a card's fault means: whose it is, and what makes it good again. Pure.
//!
//! | fault | is | follows |
//! | --- | --- | --- |
//! | XID 13, 31, 43, 45, 68, 69, 109, 137 | the application's | its pod is told; the card is healthy |
//! | XID 63, 92, 154 | a note of the driver | the card is asked for its standing; healthy by itself |
//! | XID 94 | a memory error that took down one application | its instance is not used again |
//! | any other XID or a double bit ECC error that NVML ascribes to an instance | the instance's | the same |
//! | any other XID, a double bit ECC error | the card's | it is not offered until it is reset, or the driver asks for nothing any more |
//! | recovery action, failed row remapping | the card's | it is not offered while NVML says so |
//! | no answer | the card's | it is not offered until it answers |
//!
//! Sources: NVIDIA's XID catalog (docs.nvidia.com/deploy/xid-errors), the list of application errors of NVIDIA's
//! k8s-device-plugin (`internal/rm/health.go`), NVML's header (`nvmlDeviceGpuRecoveryAction_t`).

use std::{collections::BTreeSet, convert::Infallible, str::FromStr};

use crate::nvml::{Event, Recovery, Standing};

/// Whose a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The application's; the hardware is well.
    Application,
    /// Nobody's: something to know.
    Note,
    /// One instance's where NVML says which; the rest of the card is well.
    Instance,
    /// The card's.
    Card,
}

/// XIDs that are known, whose they are, and in words.
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
    (48, Scope::Card, "double bit ECC error"),
    (62, Scope::Card, "halt of an internal micro-controller"),
    (64, Scope::Card, "row remapping failed"),
    (74, Scope::Card, "NVLink error"),
    (79, Scope::Card, "the GPU has fallen off the bus"),
    (95, Scope::Card, "uncontained memory error"),
    (119, Scope::Card, "timeout of the GPU's system processor"),
    (120, Scope::Card, "error of the GPU's system processor"),
    (140, Scope::Card, "unrecovered ECC error"),
    (143, Scope::Card, "initialisation error"),
];

/// XIDs that are not looked at: the values of NVIDIA's `DP_DISABLE_HEALTHCHECKS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    all: bool,
    xids: BTreeSet<u64>,
}

impl Ignored {
    /// Whether no fault is looked at.
    pub fn is_all(&self) -> bool {
        self.all
    }
}

/// `all` or `xids` for all of them, else a comma list; what is no number is passed over, as NVIDIA's plugin does.
impl FromStr for Ignored {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let words = || text.split(',').map(str::trim);
        Ok(Self {
            all: words().any(|word| matches!(word, "all" | "xids")),
            xids: words().filter_map(|word| word.parse().ok()).collect(),
        })
    }
}

/// Whose a fault is, and what it is in words. Unknown XIDs are the card's.
pub fn judge(event: Event, ignored: &Ignored) -> (Scope, String) {
    let xid = match event {
        Event::Xid(xid) => xid,
        Event::DoubleBitEcc => return (Scope::Card, "double bit ECC error".to_owned()),
        Event::Look => return (Scope::Note, "all GPUs are to be looked at".to_owned()),
    };
    let known = KNOWN.iter().find(|(known, ..)| *known == xid);
    let (scope, words) = known.map_or((Scope::Card, "unknown"), |(_, scope, words)| {
        (*scope, *words)
    });
    let scope = if ignored.all || ignored.xids.contains(&xid) {
        Scope::Note
    } else {
        scope
    };
    (scope, format!("XID {xid}, {words}"))
}

/// Why a card must not be used by what it says of itself.
pub fn ailment(standing: &Standing) -> Option<String> {
    if standing.row_failed {
        return Some("a row of memory cannot be remapped; the GPU is to be replaced".to_owned());
    }
    match standing.recovery? {
        Recovery::None | Recovery::DrainP2p => None,
        Recovery::Reset => Some("the driver asks for a reset of the GPU".to_owned()),
        Recovery::Reboot => Some("the driver asks for a reboot of the node".to_owned()),
        Recovery::DrainAndReset => {
            Some("the driver asks for a reset of the GPU once its pods have ended".to_owned())
        }
        Recovery::Other(action) => Some(format!(
            "the driver asks for an unknown recovery ({action})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applications_fault_is_not_the_cards() {
        let none = Ignored::default();
        let scope = |xid| judge(Event::Xid(xid), &none).0;
        // The list of NVIDIA's k8s-device-plugin.
        for xid in [13, 31, 43, 45, 68, 109] {
            assert_eq!(scope(xid), Scope::Application, "{xid}");
        }
        assert_eq!(scope(94), Scope::Instance);
        for xid in [48, 79, 95, 119, 4711] {
            assert_eq!(scope(xid), Scope::Card, "{xid}");
        }
        assert_eq!(judge(Event::DoubleBitEcc, &none).0, Scope::Card);
        let (_, words) = judge(Event::Xid(79), &none);
        assert_eq!(words, "XID 79, the GPU has fallen off the bus");
        let mut known: Vec<_> = KNOWN.iter().map(|(xid, ..)| xid).collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), KNOWN.len(), "one is listed twice");
    }

    #[test]
    fn nvidias_variable_is_understood() {
        let ignored = |text: &str| text.parse::<Ignored>().unwrap();
        assert!(ignored("all").is_all() && ignored("xids").is_all());
        let some = ignored("79, 95,x");
        assert!(!some.is_all());
        assert_eq!(judge(Event::Xid(95), &some).0, Scope::Note);
        assert_eq!(judge(Event::Xid(48), &some).0, Scope::Card);
        assert_eq!(ignored(""), Ignored::default());
    }

    #[test]
    fn a_card_is_ill_while_the_driver_asks_for_something() {
        let standing = |recovery| Standing {
            recovery,
            row_failed: false,
        };
        assert_eq!(ailment(&standing(None)), None);
        assert_eq!(ailment(&standing(Some(Recovery::None))), None);
        assert_eq!(ailment(&standing(Some(Recovery::DrainP2p))), None);
        assert!(ailment(&standing(Some(Recovery::Reset))).is_some());
        let failed = Standing {
            recovery: Some(Recovery::None),
            row_failed: true,
        };
        assert!(ailment(&failed).unwrap().contains("replaced"));
    }
}
