//! NVML behind safe verbs: survey, create, destroy, mode. The only `unsafe` of the product.
//!
//! nvml-wrapper loads the library and wraps what it knows; the GPU instance calls go to the raw
//! symbols, because the wrapper has none (and its `possible_placements` is always empty).
//! Everything here blocks and belongs on the one thread that owns the library; only the wait for
//! faults ([`Watch`]) has a thread and a session of its own.
#![allow(unsafe_code, reason = "NVML is a C library")]

mod error;
mod health;
mod instance;
mod profile;
mod watch;

use std::{cell::RefCell, collections::BTreeMap, ffi::OsStr, mem, ptr};

use domain::{config::FilterDevices, gpu::Model, slices::Slices};
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings as sys;

pub(crate) use self::error::{call, check};
pub use self::{
    error::{Code, NvmlError},
    health::{Recovery, Standing},
    watch::{Event, Fault, Watch},
};

/// A loaded NVML with an open session.
pub struct Cards {
    nvml: Nvml,
    /// Handles of whole cards by UUID. They die with a change of mode or a reset; those of MIG devices with every
    /// change of instances, so they are never kept.
    handles: RefCell<BTreeMap<String, sys::nvmlDevice_t>>,
}

/// A card as NVML shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedCard {
    /// NVML index.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Minor number of `/dev/nvidia<minor>`.
    pub minor: u32,
    /// NUMA node, where NVML says so.
    pub numa: Option<u32>,
    /// What it offers.
    pub model: Model,
    /// MIG mode; `None` where the card cannot do MIG.
    pub mig: Option<MigMode>,
    /// What it says of its own condition.
    pub standing: Standing,
    /// The GPU instances on it.
    pub instances: Vec<LiveInstance>,
}

/// `nvmlDeviceGetMigMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigMode {
    /// In force.
    pub current: bool,
    /// After the next GPU reset.
    pub pending: bool,
}

/// A GPU instance as NVML shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveInstance {
    /// NVML GPU instance id.
    pub id: u32,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// Its compute instances: id and MIG UUID.
    pub compute: Vec<ComputeInstance>,
}

/// A compute instance of a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeInstance {
    /// NVML compute instance id.
    pub id: u32,
    /// `MIG-…`.
    pub uuid: String,
}

impl LiveInstance {
    /// The slices it stands on.
    pub fn slices(&self) -> Slices {
        Slices::span(self.start, self.size)
    }
}

impl Cards {
    /// Loads the library, `libnvidia-ml.so.1` of the system or the one at `library`, and opens a session.
    pub fn open(library: Option<&OsStr>) -> Result<Self, NvmlError> {
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

    /// Does something while this process has no card open, and opens the session again.
    ///
    /// A reset wants that, and a session that died with the driver is of no use any more.
    pub fn without_session<T>(&self, work: impl FnOnce() -> T) -> Result<T, NvmlError> {
        self.handles.borrow_mut().clear();
        // The session may be dead already: what counts is that it can be opened again.
        let _ = call!(self, nvmlShutdown());
        let result = work();
        call!(self, nvmlInit_v2())?;
        Ok(result)
    }

    /// Version of the driver, for logs.
    pub fn driver_version(&self) -> String {
        self.nvml.sys_driver_version().unwrap_or_default()
    }

    /// Everything about every card that is our business; one that fails is skipped and reported beside.
    pub fn survey(&self, filter: &FilterDevices) -> Result<Survey, NvmlError> {
        self.handles.borrow_mut().clear();
        let mut count = 0;
        call!(self, nvmlDeviceGetCount_v2(&raw mut count))?;
        let mut cards = Vec::new();
        let mut failed = Vec::new();
        for index in 0..count {
            if filter.index.contains(&index) {
                continue;
            }
            match self.survey_card(index, filter) {
                Ok(card) => cards.extend(card),
                Err(error) => failed.push((index, error)),
            }
        }
        Ok((cards, failed))
    }

    fn survey_card(
        &self,
        index: u32,
        filter: &FilterDevices,
    ) -> Result<Option<SurveyedCard>, NvmlError> {
        let mut device = ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2(index, &raw mut device))?;
        let uuid = self.uuid(device)?;
        if filter.excludes(index, &uuid) {
            return Ok(None);
        }
        self.handles.borrow_mut().insert(uuid.clone(), device);
        let mig = self.mig_mode(device)?;
        let model = self.model(device, mig.is_some())?;
        let mut minor = 0;
        call!(self, nvmlDeviceGetMinorNumber(device, &raw mut minor))?;
        let mut numa = 0;
        let numa = call!(self, nvmlDeviceGetNumaNodeId(device, &raw mut numa)).map(|()| numa);
        let instances = if mig.is_some_and(|mode| mode.current) {
            self.instances(device, &model)?
        } else {
            vec![]
        };
        Ok(Some(SurveyedCard {
            index,
            uuid,
            minor,
            numa: numa.ok(),
            model,
            mig,
            standing: self.standing(device),
            instances,
        }))
    }

    /// UUID of a card or MIG device.
    fn uuid(&self, device: sys::nvmlDevice_t) -> Result<String, NvmlError> {
        text(96, |buffer, length| {
            call!(self, nvmlDeviceGetUUID(device, buffer, length))
        })
    }

    /// MIG mode of a card; `None` where it cannot do MIG.
    pub fn mode_of(&self, uuid: &str) -> Result<Option<MigMode>, NvmlError> {
        self.mig_mode(self.device(uuid)?)
    }

    fn mig_mode(&self, device: sys::nvmlDevice_t) -> Result<Option<MigMode>, NvmlError> {
        let (mut current, mut pending) = (0, 0);
        match call!(
            self,
            nvmlDeviceGetMigMode(device, &raw mut current, &raw mut pending)
        ) {
            Ok(()) => Ok(Some(MigMode {
                current: current == 1,
                pending: pending == 1,
            })),
            Err(error) if error.code() == Some(Code::NOT_SUPPORTED) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Turns MIG mode on or off (`nvmlDeviceSetMigMode`) and tells whether it is in force now.
    ///
    /// Three things are looked at, because each can say no alone: the call's result, the
    /// activation status, and the current mode afterwards.
    pub fn set_mig_mode(&self, uuid: &str, enable: bool) -> Result<(), NvmlError> {
        let device = self.device(uuid)?;
        let mut activation = 0;
        call!(
            self,
            nvmlDeviceSetMigMode(device, u32::from(enable), &raw mut activation)
        )?;
        check("nvmlDeviceSetMigMode: activation", activation)?;
        // The call may rebind the device: read the handle again before asking.
        self.handles.borrow_mut().remove(uuid);
        match self.mode_of(uuid)? {
            Some(mode) if mode.current == enable => Ok(()),
            Some(_) => Err(NvmlError::ModePending),
            None => check("nvmlDeviceGetMigMode", Code::NOT_SUPPORTED.0),
        }
    }

    fn device(&self, uuid: &str) -> Result<sys::nvmlDevice_t, NvmlError> {
        if let Some(known) = self.handles.borrow().get(uuid) {
            return Ok(*known);
        }
        let text =
            std::ffi::CString::new(uuid).map_err(|_| NvmlError::NoSuchCard(uuid.to_owned()))?;
        let mut device = ptr::null_mut();
        call!(
            self,
            nvmlDeviceGetHandleByUUID(text.as_ptr(), &raw mut device)
        )?;
        self.handles.borrow_mut().insert(uuid.to_owned(), device);
        Ok(device)
    }
}

/// What a look at all cards gave: those that answered, and the index and error of those that did not.
pub type Survey = (Vec<SurveyedCard>, Vec<(u32, NvmlError)>);

/// Calls `fill` with a buffer of `length` bytes and reads the C string it wrote.
fn text(
    length: u32,
    fill: impl FnOnce(*mut std::ffi::c_char, u32) -> Result<(), NvmlError>,
) -> Result<String, NvmlError> {
    let mut buffer = vec![0u8; length as usize];
    fill(buffer.as_mut_ptr().cast(), length)?;
    Ok(c_text(&buffer))
}

/// The text before the first NUL.
fn c_text(bytes: &[u8]) -> String {
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
const fn version<T>(number: u32) -> u32 {
    mem::size_of::<T>() as u32 | (number << 24)
}
