//! Initialisation, errors in words, and queries about the system.

use std::{
    ffi::{CStr, c_char, c_uint},
    fs::File,
    sync::Mutex,
};

use super::{call::call, out::put_text};
use crate::code::{
    Code, DRIVER_NOT_LOADED, INVALID_ARGUMENT, NOT_FOUND, SUCCESS, UNINITIALIZED, UNKNOWN,
};

/// How often this process has initialized NVML, and its session.
static SESSION: Mutex<Option<(u32, File)>> = Mutex::new(None);

fn initialize(name: &str) -> Code {
    call(name, None, |store, _| {
        let mut session = SESSION.lock().map_err(|_| UNKNOWN)?;
        match session.as_mut() {
            Some((times, _)) => *times += 1,
            None => *session = Some((1, store.session().map_err(|_| DRIVER_NOT_LOADED)?)),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    initialize("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    initialize("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    let Ok(mut session) = SESSION.lock() else {
        return UNKNOWN;
    };
    match session.take() {
        None => return UNINITIALIZED,
        Some((1, file)) => {
            // Not only closed: a child that is being started may have the file, too.
            let _ = file.unlock();
        }
        Some((times, file)) => *session = Some((times - 1, file)),
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    let text: &CStr = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        19 => c"In use by another client",
        23 => c"Insufficient Resources",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetDriverVersion", None, |_, _| {
        put_text(out, length, "580.95.05")
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetNVMLVersion", None, |_, _| {
        put_text(out, length, "13.580.95.05")
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetProcessName(pid: c_uint, out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetProcessName", None, |_, _| {
        let Some(room) = (length as usize).checked_sub(1) else {
            return Err(INVALID_ARGUMENT);
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| NOT_FOUND)?;
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() {
            return Err(NOT_FOUND);
        }
        // NVML crops.
        let name = String::from_utf8_lossy(name);
        put_text(out, length, &name[..name.floor_char_boundary(room)])
    })
}
