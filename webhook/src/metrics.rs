//! What the webhook measures.

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

/// How a review ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the value of a label")]
pub(crate) enum Outcome {
    /// Admitted with a patch.
    changed,
    /// Admitted without a patch.
    unchanged,
    /// Denied with a sentence for the pod's author.
    refused,
    /// Not an `AdmissionReview` of a pod.
    invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

/// Number and duration of reviews.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    reviews: Family<Labels, Counter>,
    duration: Histogram,
}

impl Metrics {
    /// Registers the metrics; prefix `tessera_webhook`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            duration: Histogram::new(exponential_buckets(0.0001, 2.0, 14)),
        };
        let registry = registry.sub_registry_with_prefix("webhook");
        registry.register(
            "reviews",
            "Admission reviews, per outcome",
            metrics.reviews.clone(),
        );
        registry.register_with_unit(
            "review_duration",
            "Duration of admission reviews",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        metrics
    }

    /// Counts an answered review.
    pub(crate) fn reviewed(&self, outcome: Outcome, duration: Duration) {
        self.reviews.get_or_create(&Labels { outcome }).inc();
        self.duration.observe(duration.as_secs_f64());
    }
}
