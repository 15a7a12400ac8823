//! NVML's return codes.

/// `nvmlReturn_t`.
pub type Code = u32;
/// Done.
pub const SUCCESS: Code = 0;
/// Not initialized.
pub const UNINITIALIZED: Code = 1;
/// Wrong argument or stale handle.
pub const INVALID_ARGUMENT: Code = 2;
/// Not on this GPU or in this mode.
pub const NOT_SUPPORTED: Code = 3;
/// Root needed.
pub const NO_PERMISSION: Code = 4;
/// No such instance.
pub const NOT_FOUND: Code = 6;
/// Buffer too small.
pub const INSUFFICIENT_SIZE: Code = 7;
/// `nvmlInit` finds no driver.
pub const DRIVER_NOT_LOADED: Code = 9;
/// Nothing came in time.
pub const TIMEOUT: Code = 10;
/// The GPU has fallen off the bus.
pub const GPU_IS_LOST: Code = 15;
/// Somebody uses it.
pub const IN_USE: Code = 19;
/// No room.
pub const INSUFFICIENT_RESOURCES: Code = 23;
/// Wrong struct version.
pub const ARGUMENT_VERSION_MISMATCH: Code = 25;
/// Anything else.
pub const UNKNOWN: Code = 999;
