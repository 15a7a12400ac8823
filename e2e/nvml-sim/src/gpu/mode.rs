//! MIG mode, resets, reboots, and what each of them repairs.

use super::{Gpu, RECOVER_BY_REBOOT, RECOVER_NOTHING, Remapped};
use crate::code::{Code, IN_USE, SUCCESS};

impl Gpu {
    /// Sets the MIG mode; `Ok` is the activation status.
    pub fn set_mig(&mut self, on: bool, held: bool) -> Result<Code, Code> {
        if !on && !self.instances.is_empty() {
            return Err(IN_USE);
        }
        if held && self.mig != on {
            if !self.model().is_ampere() {
                return Err(IN_USE);
            }
            self.pending = on;
            return Ok(IN_USE);
        }
        self.pending = on;
        if self.mig != on && self.model().is_ampere() {
            self.reset();
        }
        self.mig = on;
        Ok(SUCCESS)
    }

    /// A GPU reset: instances are lost; the pending mode and pending remappings take effect, and it repairs what a
    /// reset can repair.
    pub fn reset(&mut self) {
        self.instances.clear();
        self.mig = self.pending;
        self.remapped.pending = false;
        if self.recovery_action != RECOVER_BY_REBOOT {
            self.recovery_action = RECOVER_NOTHING;
        }
    }

    /// A reboot: as a reset, but it repairs all, and only Ampere remembers its mode.
    pub fn reboot(&mut self) {
        self.pending = self.pending && self.model().is_ampere();
        self.reset();
        self.lost = false;
        self.recovery_action = RECOVER_NOTHING;
    }

    /// The GPU is as healthy as a new one; its instances live on.
    pub fn recover(&mut self) {
        self.lost = false;
        self.recovery_action = RECOVER_NOTHING;
        self.remapped = Remapped::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::RECOVER_BY_RESET, super::tests::gpu, *};

    #[test]
    fn ampere_waits_for_a_reset_where_hopper_refuses() {
        let mut ampere = gpu("A30-24GB");
        assert_eq!(ampere.set_mig(false, true), Ok(IN_USE));
        assert_eq!((ampere.mig, ampere.pending), (true, false));
        ampere.reset();
        assert!(!ampere.mig);
        assert_eq!(ampere.set_mig(true, false), Ok(SUCCESS));
        ampere.reboot();
        assert!(ampere.mig, "Ampere remembers");
        let mut hopper = gpu("H100-SXM5-80GB");
        assert_eq!(hopper.set_mig(false, true), Err(IN_USE));
        hopper.create(19).unwrap();
        assert_eq!(hopper.set_mig(false, false), Err(IN_USE), "instances exist");
        hopper.reboot();
        assert_eq!(
            (hopper.mig, hopper.instances.len()),
            (false, 0),
            "Hopper forgets"
        );
    }

    #[test]
    fn a_reset_repairs_what_it_can_and_a_reboot_the_rest() {
        let broken = |key: &str, recovery_action: u32| {
            let mut gpu = gpu(key);
            (gpu.lost, gpu.recovery_action) = (true, recovery_action);
            (gpu.remapped.uncorrectable, gpu.remapped.pending) = (1, true);
            gpu
        };
        let health = |gpu: &Gpu| {
            (
                gpu.lost,
                gpu.recovery_action,
                gpu.remapped.pending,
                gpu.remapped.uncorrectable,
            )
        };
        let mut hopper = broken("H100-SXM5-80GB", RECOVER_BY_RESET);
        hopper.set_mig(false, false).unwrap();
        assert_eq!(
            health(&hopper),
            (true, 1, true, 1),
            "its mode needs no reset"
        );
        hopper.reset();
        assert_eq!(health(&hopper), (true, 0, false, 1));
        let mut ampere = broken("A30-24GB", RECOVER_BY_RESET);
        ampere.set_mig(true, false).unwrap();
        assert_eq!(health(&ampere), (true, 1, true, 1), "nothing changes");
        ampere.set_mig(false, false).unwrap();
        assert_eq!(health(&ampere), (true, 0, false, 1), "a mode is a reset");
        let mut worse = broken("A30-24GB", RECOVER_BY_REBOOT);
        worse.reset();
        assert_eq!(health(&worse), (true, 2, false, 1));
        worse.reboot();
        assert_eq!(health(&worse), (false, 0, false, 1));
    }
}
