//! NVML's return codes and errors. The wrapper knows the codes only up to 22.

use std::{fmt, sync::LazyLock};

/// A return code of NVML (`nvmlReturn_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// The handle is stale, or an argument is wrong.
    pub(crate) const INVALID_ARGUMENT: Self = Self(2);
    /// Not on this GPU or not in this mode.
    pub(crate) const NOT_SUPPORTED: Self = Self(3);
    /// It does not exist (any more).
    pub(crate) const NOT_FOUND: Self = Self(6);
    /// The buffer is too small.
    pub(crate) const INSUFFICIENT_SIZE: Self = Self(7);
    /// The library lacks the symbol.
    pub(crate) const FUNCTION_NOT_FOUND: Self = Self(13);
    /// The GPU fell off the bus.
    pub(crate) const GPU_IS_LOST: Self = Self(15);
    /// The library does not belong to the running driver: the driver was replaced.
    pub(crate) const LIB_RM_VERSION_MISMATCH: Self = Self(18);
    /// A client or an instance prevents it.
    pub(crate) const IN_USE: Self = Self(19);
}

/// The texts of `nvmlErrorString`: the library is not always loaded when an error is printed.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            1 => "Uninitialized",
            2 => "Invalid Argument",
            3 => "Not Supported",
            4 => "Insufficient Permissions",
            6 => "Not Found",
            7 => "Insufficient Size",
            9 => "Driver Not Loaded",
            13 => "Function Not Found",
            15 => "GPU is lost",
            16 => "GPU requires reset",
            18 => "Driver/library version mismatch",
            19 => "In use by another client",
            23 => "Insufficient Resources",
            25 => "Argument version mismatch",
            27 => "Not Ready",
            29 => "Invalid State",
            999 => "Unknown Error",
            other => return write!(f, "NVML error {other}"),
        };
        f.write_str(text)
    }
}

/// A call of NVML that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmlError {
    /// The library cannot be loaded or initialised.
    #[error("{library} cannot be used")]
    Open {
        /// Path or name of the library.
        library: String,
        /// The error of the wrapper.
        source: nvml_wrapper::error::NvmlError,
    },
    /// A function returned an error code.
    #[error("{call}: {code}")]
    Call {
        /// Name of the function.
        call: &'static str,
        /// The code that it returned.
        code: Code,
    },
    /// MIG mode was set but is only pending: the GPU needs a reset.
    #[error("nvmlDeviceSetMigMode: the mode is pending until the GPU is reset")]
    ModePending,
    /// There is no GPU of this UUID.
    #[error("there is no GPU {0}")]
    NoSuchGpu(String),
    /// The GPU does not offer the profile.
    #[error("the GPU does not offer profile {0}")]
    NoSuchProfile(String),
    /// The instance of this id is not the one that was meant.
    #[error("GPU instance {id} is not the one that was recorded: {found}")]
    Changed {
        /// NVML GPU instance id.
        id: u32,
        /// Its profile and slices.
        found: String,
    },
}

impl NvmlError {
    /// The error code, if a function returned one.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

pub(crate) fn check(call: &'static str, code: u32) -> Result<(), NvmlError> {
    static TRACE: LazyLock<bool> = LazyLock::new(|| tracing::enabled!(tracing::Level::TRACE));
    if *TRACE {
        tracing::trace!(call, code, "NVML");
    }
    if code == 0 {
        Ok(())
    } else {
        Err(NvmlError::Call {
            call,
            code: Code(code),
        })
    }
}

/// Calls a symbol of the loaded library; a missing one is `FUNCTION_NOT_FOUND`.
macro_rules! call {
    ($session:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match &$session.nvml.lib().$function {
            // SAFETY: the symbol has the signature of NVML's header, handles come from NVML in this
            // session, and every pointer is to a live value of the right type.
            Ok(function) => $crate::nvml::error::check(
                stringify!($function),
                unsafe { function($($argument),*) },
            ),
            Err(_) => $crate::nvml::error::check(
                stringify!($function),
                $crate::nvml::error::Code::FUNCTION_NOT_FOUND.0,
            ),
        }
    };
}
pub(crate) use call;
