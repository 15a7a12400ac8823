//! A simulated `libnvidia-ml.so.1`: NVML's C ABI over cards kept in a state directory.
//!
//! As a cdylib it is loaded in the place of the driver's library; as an rlib it lets tests make
//! cards, see the truth behind the ABI, and order faults.

pub mod card;
mod ffi;
pub mod model;
pub mod store;

use std::{io, path::Path};

use crate::{
    card::Card,
    store::{State, Store},
};

/// A card to make.
#[derive(Clone, Debug)]
pub struct GpuSpec {
    /// Key, short key or NVML name of its model: `a100-80gb`.
    pub model: String,
    /// Whether MIG mode is on.
    pub mig: bool,
    /// Whether the die's halves are numbered the other way round.
    pub mirrored: bool,
}

/// Makes the cards of a node in a state directory. The same seed gives the same UUIDs.
pub fn provision(dir: &Path, seed: &str, gpus: &[GpuSpec]) -> io::Result<()> {
    use sha1::{Digest, Sha1};
    let cards = gpus
        .iter()
        .zip(0u32..)
        .map(|(spec, index)| {
            let model = model::model(&spec.model).ok_or_else(|| {
                io::Error::other(format!("no model {:?}; see models.json", spec.model))
            })?;
            let hash = Sha1::digest(format!("{seed}/{index}"));
            let mut pdi = [0; 8];
            pdi.copy_from_slice(&hash[..8]);
            Ok(Card {
                model: model.key.clone(),
                chip: u16::try_from(model.pci_device_id >> 16).unwrap_or_default(),
                pdi: u64::from_le_bytes(pdi),
                minor: index,
                mirrored: spec.mirrored,
                mig: spec.mig,
                pending: spec.mig,
                instances: vec![],
                serial: 0,
            })
        })
        .collect::<io::Result<_>>()?;
    Store::new(dir).provision(&State {
        cards,
        latency_ms: 0,
    })
}

/// A reboot of the node: instances and processes are gone, Hopper and later forget MIG mode.
pub fn reboot(dir: &Path) -> io::Result<()> {
    Store::new(dir).with(|state| state.cards.iter_mut().for_each(Card::reboot))
}
