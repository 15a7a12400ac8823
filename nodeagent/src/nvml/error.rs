//! NVML's return codes; the wrapper knows them only up to 22.

use std::{fmt, sync::LazyLock};

/// A return code of NVML (`nvmlReturn_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// The handle is stale, or an argument is wrong.
    pub const INVALID_ARGUMENT: Self = Self(2);
    /// Not on this card or not in this mode.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// Root or a capability is needed.
    pub const NO_PERMISSION: Self = Self(4);
    /// It does not exist (any more).
    pub const NOT_FOUND: Self = Self(6);
    /// The buffer is too small.
    pub const INSUFFICIENT_SIZE: Self = Self(7);
    /// The library lacks the symbol.
    pub const FUNCTION_NOT_FOUND: Self = Self(13);
    /// The card fell off the bus.
    pub const GPU_IS_LOST: Self = Self(15);
    /// The library is not the one of the driver that runs: it was replaced.
    pub const LIB_RM_VERSION_MISMATCH: Self = Self(18);
    /// A client or an instance is in the way.
    pub const IN_USE: Self = Self(19);
    /// Placement taken, profile used up or card fragmented.
    pub const INSUFFICIENT_RESOURCES: Self = Self(23);
}

/// The words of `nvmlErrorString`, which are not always at hand when an error is printed.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
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
        f.write_str(words)
    }
}

/// A call to NVML that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// The library cannot be loaded or initialised.
    #[error("{library} cannot be used")]
    Open {
        /// Path or name of the library.
        library: String,
        /// What the wrapper says.
        source: nvml_wrapper::error::NvmlError,
    },
    /// A call returned a code.
    #[error("{call}: {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        code: Code,
    },
    /// MIG mode was set but is only pending: the card needs a reset.
    #[error("nvmlDeviceSetMigMode: the mode is pending until the GPU is reset")]
    ModePending,
    /// No card of that UUID.
    #[error("no card {0}")]
    NoSuchCard(String),
    /// The profile is not offered by the card.
    #[error("profile {0} is not offered by the card")]
    NoSuchProfile(String),
    /// The instance found is not the one that was meant.
    #[error("GPU instance {id} is not the one that was recorded: {found}")]
    Changed {
        /// NVML GPU instance id.
        id: u32,
        /// What is there.
        found: String,
    },
}

impl NvmlError {
    /// The code, if a call returned one.
    pub fn code(&self) -> Option<Code> {
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
    ($cards:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match &$cards.nvml.lib().$function {
            // SAFETY: the symbol has the signature of NVML's header, handles come from NVML in this
            // session, and every pointer is to a live value of the right type.
            Ok(function) => $crate::nvml::check(
                stringify!($function),
                unsafe { function($($argument),*) },
            ),
            Err(_) => $crate::nvml::check(
                stringify!($function),
                $crate::nvml::Code::FUNCTION_NOT_FOUND.0,
            ),
        }
    };
}
pub(crate) use call;
