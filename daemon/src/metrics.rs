//! The metrics registry that every daemon starts from.

use prometheus_client::{
    metrics::{gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

/// A registry with prefix `tessera`, the build's version and the start time of the process.
pub fn registry(component: &'static str) -> Registry {
    let mut registry = Registry::with_prefix("tessera");
    registry.register(
        "build",
        "Version and component of the daemon",
        Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("component", component),
        ]),
    );
    let started: Gauge = Gauge::default();
    started.set(jiff::Timestamp::now().as_second());
    registry.register_with_unit(
        "process_start_time",
        "Start time of the process since the Unix epoch",
        Unit::Seconds,
        started,
    );
    registry
}
