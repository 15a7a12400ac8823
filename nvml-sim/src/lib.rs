//! A simulated `libnvidia-ml.so.1`.

pub mod card;
pub mod model;
