//! A loaded NVML with an open session, and handles of GPUs.

use std::{cell::RefCell, collections::BTreeMap, ffi::OsStr, mem, ptr};

use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings as sys;

use super::error::{NvmlError, call};

/// A loaded NVML with an open session.
pub(crate) struct Session {
    pub(super) nvml: Nvml,
    /// Handles of whole GPUs by UUID. A change of mode or a reset invalidates them. Those of MIG devices are
    /// invalidated by every change of instances, so they are never kept.
    pub(super) handles: RefCell<BTreeMap<String, sys::nvmlDevice_t>>,
}

impl Session {
    /// Loads the library, `libnvidia-ml.so.1` of the system or the one at `library`, and opens a session.
    pub(crate) fn open(library: Option<&OsStr>) -> Result<Self, NvmlError> {
        let mut builder = Nvml::builder();
        if let Some(path) = library {
            builder.lib_path(path);
        }
        Ok(Self {
            nvml: builder.init().map_err(|source| NvmlError::Open {
                library: library.map_or("libnvidia-ml.so.1".into(), |p| {
                    p.to_string_lossy().into_owned()
                }),
                source,
            })?,
            handles: RefCell::default(),
        })
    }

    /// Does something while this process has no GPU open, and opens the session again.
    ///
    /// A reset needs this, and a session that died with the driver cannot be used any more.
    pub(crate) fn without_session<T>(&self, work: impl FnOnce() -> T) -> Result<T, NvmlError> {
        self.close();
        let result = work();
        self.reopen()?;
        Ok(result)
    }

    /// Closes the session: this process has no GPU open any more.
    pub(crate) fn close(&self) {
        self.handles.borrow_mut().clear();
        // The session may be dead already: only opening it again has to succeed.
        let _ = call!(self, nvmlShutdown());
    }

    /// Opens a session that was closed.
    pub(crate) fn reopen(&self) -> Result<(), NvmlError> {
        call!(self, nvmlInit_v2())
    }

    /// Version of the driver, for logs.
    pub(crate) fn driver_version(&self) -> String {
        self.nvml.sys_driver_version().unwrap_or_default()
    }

    /// UUID of a GPU or MIG device.
    pub(super) fn uuid(&self, device: sys::nvmlDevice_t) -> Result<String, NvmlError> {
        text(96, |buffer, length| {
            call!(self, nvmlDeviceGetUUID(device, buffer, length))
        })
    }

    /// Handle of a GPU.
    pub(super) fn device(&self, uuid: &str) -> Result<sys::nvmlDevice_t, NvmlError> {
        if let Some(known) = self.handles.borrow().get(uuid) {
            return Ok(*known);
        }
        let text =
            std::ffi::CString::new(uuid).map_err(|_| NvmlError::NoSuchGpu(uuid.to_owned()))?;
        let mut device = ptr::null_mut();
        call!(
            self,
            nvmlDeviceGetHandleByUUID(text.as_ptr(), &raw mut device)
        )?;
        self.handles.borrow_mut().insert(uuid.to_owned(), device);
        Ok(device)
    }
}

/// Calls `fill` with a buffer of `length` bytes and reads the C string it wrote.
pub(super) fn text(
    length: u32,
    fill: impl FnOnce(*mut std::ffi::c_char, u32) -> Result<(), NvmlError>,
) -> Result<String, NvmlError> {
    let mut buffer = vec![0u8; length as usize];
    fill(buffer.as_mut_ptr().cast(), length)?;
    Ok(c_text(&buffer))
}

/// The text before the first NUL.
pub(super) fn c_text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `sizeof | version << 24`, NVML's version word of a struct.
#[allow(
    clippy::cast_possible_truncation,
    reason = "NVML's structs are a few hundred bytes"
)]
pub(super) const fn version<T>(number: u32) -> u32 {
    mem::size_of::<T>() as u32 | (number << 24)
}
