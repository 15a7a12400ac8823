//! Macros that declare a call on a handle: they check the handle before the work.

/// Declares a call on a device handle of the kinds named: `device(name, kinds, args, |handle, state| …)`.
macro_rules! device {
    ($name:ident, $kinds:expr, ($($argument:ident: $type:ty),*), |$handle:ident, $store:ident, $state:ident| $work:expr) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(device: nvml_wrapper_sys::bindings::nvmlDevice_t, $($argument: $type),*) -> $crate::code::Code {
            let $handle = match $crate::ffi::handle::Handle::unpack(device, $kinds) {
                Ok(handle) => handle,
                Err(code) => return if $crate::ffi::handle::Handle::unpack(device, &[$crate::ffi::handle::GPU, $crate::ffi::handle::MIG]).is_ok() { $crate::code::NOT_SUPPORTED } else { code },
            };
            $crate::ffi::call::call(stringify!($name), Some($handle.index()), |$store, $state| {
                let _ = ($handle.gpu($state)?, &$store);
                if $handle.kind == $crate::ffi::handle::MIG { $handle.compute($state)?; }
                $work
            })
        }
    };
}

/// Declares a call on a GPU instance handle.
macro_rules! gpu_instance {
    ($name:ident, ($($argument:ident: $type:ty),*), |$handle:ident, $store:ident, $state:ident| $work:expr) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(gi: nvml_wrapper_sys::bindings::nvmlGpuInstance_t, $($argument: $type),*) -> $crate::code::Code {
            let $handle = match $crate::ffi::handle::Handle::unpack(gi, &[$crate::ffi::handle::GI]) {
                Ok(handle) => handle,
                Err(code) => return code,
            };
            $crate::ffi::call::call(stringify!($name), Some($handle.index()), |$store, $state| {
                let _ = ($handle.instance($state)?, &$store);
                $work
            })
        }
    };
}

pub(super) use device;
pub(super) use gpu_instance;
