//! What the plugin measures.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// A verb of the extender protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the value of a label")]
pub(crate) enum Verb {
    filter,
    prioritize,
    bind,
    preempt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: Verb,
}

/// Duration of the requests of kube-scheduler, per verb.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Registers the metrics; prefix `tessera_plugin`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let requests = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 2.0, 16))
        });
        registry
            .sub_registry_with_prefix("plugin")
            .register_with_unit(
                "request_duration",
                "Duration of requests from kube-scheduler, per verb",
                Unit::Seconds,
                requests.clone(),
            );
        Self { requests }
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, verb: Verb, duration: Duration) {
        self.requests
            .get_or_create(&Labels { verb })
            .observe(duration.as_secs_f64());
    }
}
