//! MIG mode: read and changed.

use nvml_wrapper_sys::bindings as sys;

use super::{
    data::MigMode,
    error::{Code, NvmlError, call, check},
    session::Session,
};

impl Session {
    /// MIG mode of a GPU; `None` where it does not support MIG.
    pub(crate) fn mode_of(&self, uuid: &str) -> Result<Option<MigMode>, NvmlError> {
        self.mig_mode(self.device(uuid)?)
    }

    pub(super) fn mig_mode(&self, device: sys::nvmlDevice_t) -> Result<Option<MigMode>, NvmlError> {
        let (mut current, mut pending) = (0, 0);
        match call!(
            self,
            nvmlDeviceGetMigMode(device, &raw mut current, &raw mut pending)
        ) {
            Ok(()) => Ok(Some(MigMode {
                current: current == 1,
                pending: pending == 1,
            })),
            Err(error)
                if matches!(
                    error.code(),
                    // A driver older than MIG lacks the function.
                    Some(Code::NOT_SUPPORTED | Code::FUNCTION_NOT_FOUND)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Turns MIG mode on or off (`nvmlDeviceSetMigMode`) and checks that it is in force now.
    ///
    /// Three results are checked, because each can fail alone: the call's result, the
    /// activation status, and the current mode afterwards.
    pub(crate) fn set_mig_mode(&self, uuid: &str, enable: bool) -> Result<(), NvmlError> {
        let device = self.device(uuid)?;
        let mut activation = 0;
        call!(
            self,
            nvmlDeviceSetMigMode(device, u32::from(enable), &raw mut activation)
        )?;
        check("nvmlDeviceSetMigMode: activation", activation)?;
        // The call may rebind the device: the mode must be read by a new handle.
        self.handles.borrow_mut().remove(uuid);
        match self.mode_of(uuid)? {
            Some(mode) if mode.current == enable => Ok(()),
            Some(_) => Err(NvmlError::ModePending),
            None => check("nvmlDeviceGetMigMode", Code::NOT_SUPPORTED.0),
        }
    }
}
