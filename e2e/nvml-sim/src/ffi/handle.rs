//! What an opaque handle of the ABI stands for.

use std::ptr;

use crate::{
    code::{Code, GPU_IS_LOST, INVALID_ARGUMENT},
    gpu::{Compute, Gpu, Instance},
    state::State,
};

/// What an opaque handle stands for, packed into its 64 bits: kind, GPU, GI id, CI id, serial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) kind: u8,
    pub(super) gpu: u8,
    pub(super) gi: u8,
    pub(super) ci: u8,
    serial: u32,
}

pub(super) const GPU: u8 = 1;

pub(super) const MIG: u8 = 2;

pub(super) const GI: u8 = 3;

pub(super) const CI: u8 = 4;

impl Handle {
    pub(super) fn new(kind: u8, gpu: usize, gi: u32, ci: u32, serial: u32) -> Self {
        let narrow = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            kind,
            gpu: u8::try_from(gpu).unwrap_or(u8::MAX),
            gi: narrow(gi),
            ci: narrow(ci),
            serial,
        }
    }

    pub(super) fn pack<T>(self) -> *mut T {
        let [a, b, c, d] = [self.kind, self.gpu, self.gi, self.ci].map(u64::from);
        let bits = a << 56 | b << 48 | c << 40 | d << 32 | u64::from(self.serial);
        ptr::without_provenance_mut(usize::try_from(bits).unwrap_or_default())
    }

    pub(super) fn unpack<T>(pointer: *mut T, kinds: &[u8]) -> Result<Self, Code> {
        let bits = (pointer.addr() as u64).to_be_bytes();
        let [kind, gpu, gi, ci, s0, s1, s2, s3] = bits;
        let handle = Self {
            kind,
            gpu,
            gi,
            ci,
            serial: u32::from_be_bytes([s0, s1, s2, s3]),
        };
        if kinds.contains(&kind) {
            Ok(handle)
        } else {
            Err(INVALID_ARGUMENT)
        }
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.gpu)
    }

    pub(super) fn gpu(self, state: &State) -> Result<&Gpu, Code> {
        let gpu = state.gpus.get(self.index()).ok_or(INVALID_ARGUMENT)?;
        if gpu.lost { Err(GPU_IS_LOST) } else { Ok(gpu) }
    }

    pub(super) fn gpu_mut(self, state: &mut State) -> Result<&mut Gpu, Code> {
        self.gpu(state)?;
        state.gpus.get_mut(self.index()).ok_or(INVALID_ARGUMENT)
    }

    /// The instance; a handle dies with the very instance that it was given for, a MIG device's does not.
    pub(super) fn instance(self, state: &State) -> Result<&Instance, Code> {
        let instance = self
            .gpu(state)?
            .instance(self.gi.into())
            .ok_or(INVALID_ARGUMENT)?;
        if self.kind == MIG || instance.serial == self.serial {
            Ok(instance)
        } else {
            Err(INVALID_ARGUMENT)
        }
    }

    pub(super) fn compute(self, state: &State) -> Result<(&Instance, &Compute), Code> {
        let instance = self.instance(state)?;
        let compute = instance.compute.iter().find(|c| c.id == u32::from(self.ci));
        compute
            .map(|compute| (instance, compute))
            .ok_or(INVALID_ARGUMENT)
    }
}
