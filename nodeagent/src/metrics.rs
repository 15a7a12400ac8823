//! Durations and counts of what the agent does. What it knows about GPUs is in `publish::collector`.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Whether an operation succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the value of a label")]
enum Outcome {
    ok,
    error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct XidLabels {
    device_uuid: String,
    xid: u64,
}

type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// Durations and counts of what the agent does.
#[derive(Clone, Debug)]
pub struct Metrics {
    creations: Durations,
    destructions: Durations,
    preparations: Durations,
    xid_errors: Family<XidLabels, Counter>,
}

impl Metrics {
    /// Registers the metrics, with the prefix `tessera_agent`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("agent");
        let mut durations = |name: &str, help: &str| {
            let family = Durations::new_with_constructor(buckets);
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let creations = durations(
            "instance_create_duration",
            "Duration of creating a GPU instance with its compute instance",
        );
        let destructions = durations(
            "instance_destroy_duration",
            "Duration of destroying a GPU instance",
        );
        let preparations = durations(
            "container_prepare_duration",
            "Duration of preparing a container, including the wait for its devices",
        );
        let xid_errors = Family::default();
        registry.register(
            "xid_errors",
            "Number of XID errors per GPU and XID",
            xid_errors.clone(),
        );
        Self {
            creations,
            destructions,
            preparations,
            xid_errors,
        }
    }

    /// Counts an XID error of a GPU.
    pub(crate) fn count_xid(&self, gpu: &str, xid: u64) {
        let device_uuid = gpu.to_owned();
        self.xid_errors
            .get_or_create(&XidLabels { device_uuid, xid })
            .inc();
    }

    pub(crate) fn observe_creation(&self, duration: Duration, is_ok: bool) {
        observe(&self.creations, duration, is_ok);
    }

    pub(crate) fn observe_destruction(&self, duration: Duration, is_ok: bool) {
        observe(&self.destructions, duration, is_ok);
    }

    pub(crate) fn observe_preparation(&self, duration: Duration, is_ok: bool) {
        observe(&self.preparations, duration, is_ok);
    }
}

/// From 1 ms to 16 s.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn observe(family: &Durations, duration: Duration, is_ok: bool) {
    let outcome = if is_ok { Outcome::ok } else { Outcome::error };
    family
        .get_or_create(&Labels { outcome })
        .observe(duration.as_secs_f64());
}
