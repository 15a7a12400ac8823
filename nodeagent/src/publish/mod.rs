//! What the agent writes to the API server (the `GpuNode` object, Events, pods that cannot start) and its metrics.

pub(crate) mod collector;
pub(crate) mod conditions;
pub(crate) mod events;
pub(crate) mod gpus;
pub(crate) mod own_object;
pub(crate) mod pod_failure;
pub(crate) mod publisher;
pub(crate) mod setting_mistakes;
pub(crate) mod status;
