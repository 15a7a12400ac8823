//! The state of a simulated node: its GPUs and their last events. No I/O.

use std::{fmt::Display, io};

use serde::{Deserialize, Serialize};

use crate::{
    event::{DOUBLE_BIT_ECC, Event},
    gpu::{Gpu, RECOVER_BY_RESET},
};

/// Events that are remembered.
const MOST_EVENTS: usize = 256;

/// All GPUs of a simulated node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// By NVML index.
    pub gpus: Vec<Gpu>,
    /// Time that creating or destroying an instance takes, milliseconds.
    #[serde(default)]
    pub latency_ms: u64,
    /// The last events, oldest first.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Number of the next event.
    #[serde(default)]
    pub next_event: u64,
}

impl State {
    /// The GPU of that NVML index.
    pub fn gpu(&mut self, gpu: usize) -> io::Result<&mut Gpu> {
        self.gpus.get_mut(gpu).ok_or_else(|| no_gpu(&gpu))
    }

    /// NVML index of the GPU of that index or UUID.
    pub fn find(&self, gpu: &str) -> io::Result<usize> {
        let mut gpus = self.gpus.iter().zip(0usize..);
        gpus.find(|(known, index)| known.uuid() == gpu || gpu.parse() == Ok(*index))
            .map(|(_, index)| index)
            .ok_or_else(|| no_gpu(&gpu))
    }

    /// An uncorrectable memory error: an event, and a row whose remapping waits for a reset.
    pub fn double_bit_error(&mut self, gpu: usize) -> io::Result<()> {
        let unhealthy = self.gpu(gpu)?;
        unhealthy.remapped.uncorrectable += 1;
        unhealthy.remapped.pending = true;
        unhealthy.recovery_action = RECOVER_BY_RESET;
        self.raise(Event {
            gpu,
            kind: DOUBLE_BIT_ECC,
            ..Event::default()
        });
        Ok(())
    }

    /// Reports an event; it gets its number here.
    pub fn raise(&mut self, event: Event) {
        let number = self.next_event;
        self.events.push(Event { number, ..event });
        self.next_event += 1;
        let old = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..old);
    }
}

fn no_gpu(gpu: &dyn Display) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no GPU {gpu}"))
}
