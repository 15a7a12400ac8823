//! What the agent reports: the `GpuNode` object, Events, metrics.

pub mod events;
pub mod status;
