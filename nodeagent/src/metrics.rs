//! What the agent measures.

use std::{sync::Arc, time::Duration};

use domain::{gpu::InstanceState, mode::VgpuMode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::sync::watch;

use crate::{gpus::inventory::Inventory, publish::status};

/// How an NVML operation ended.
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
    create: Durations,
    destroy: Durations,
    prestart: Durations,
    xids: Family<XidLabels, Counter>,
}

impl Metrics {
    /// Registers the metrics; prefix `tessera_agent`.
    pub fn register(registry: &mut Registry) -> Self {
        fn buckets() -> Histogram {
            Histogram::new(exponential_buckets(0.001, 2.0, 15))
        }
        let registry = registry.sub_registry_with_prefix("agent");
        let mut family = |name: &str, help: &str| {
            let family = Durations::new_with_constructor(buckets);
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let create = family(
            "instance_create_duration",
            "Time to make a GPU instance with its compute instance",
        );
        let destroy = family("instance_destroy_duration", "Time to remove a GPU instance");
        let prestart = family(
            "container_prepare_duration",
            "Time that a container's start waited for its devices",
        );
        let xids = Family::default();
        registry.register("xid_errors", "XIDs that a GPU told", xids.clone());
        Self {
            create,
            destroy,
            prestart,
            xids,
        }
    }

    /// A card told an XID.
    pub fn xid(&self, gpu: &str, xid: u64) {
        let device_uuid = gpu.to_owned();
        self.xids
            .get_or_create(&XidLabels { device_uuid, xid })
            .inc();
    }

    /// An instance was made, or not.
    pub fn created(&self, time: Duration, ok: bool) {
        observe(&self.create, time, ok);
    }

    /// An instance was removed, or not.
    pub fn destroyed(&self, time: Duration, ok: bool) {
        observe(&self.destroy, time, ok);
    }

    /// A container's devices were prepared, or not.
    pub fn prepared(&self, time: Duration, ok: bool) {
        observe(&self.prestart, time, ok);
    }
}

fn observe(family: &Durations, time: Duration, ok: bool) {
    let outcome = if ok { Outcome::ok } else { Outcome::error };
    family
        .get_or_create(&Labels { outcome })
        .observe(time.as_secs_f64());
}

/// Cards and instances, read at scrape time.
#[derive(Debug)]
pub struct CardsCollector {
    /// The node's name, for the label.
    pub node: String,
    /// The published state.
    pub inventory: watch::Receiver<Arc<Inventory>>,
}

impl Collector for CardsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let inventory = self.inventory.borrow().clone();
        let cards = status::cards(&inventory, 0);
        {
            let mut metric = encoder.encode_descriptor(
                "gpu_info",
                "A card; the value is 1 while it is healthy",
                None,
                MetricType::Gauge,
            )?;
            for gpu in &cards {
                let labels = [
                    ("node", self.node.as_str()),
                    ("device_uuid", &gpu.uuid),
                    ("device_type", &gpu.model),
                    (
                        "mode",
                        if gpu.mode == VgpuMode::Mig {
                            "mig"
                        } else {
                            "hami-core"
                        },
                    ),
                ];
                let healthy = i64::from(gpu.unhealthy.is_none());
                ConstGauge::new(healthy).encode(metric.encode_family(&labels)?)?;
            }
        }
        {
            let mut metric = encoder.encode_descriptor(
                "mig_instances",
                "GPU instances, by what they are there for",
                None,
                MetricType::Gauge,
            )?;
            for state in InstanceState::ALL {
                let all = cards.iter().flat_map(|gpu| &gpu.instances);
                let count = all.filter(|instance| instance.state == state).count();
                let state = format!("{state:?}");
                let labels = [("node", self.node.as_str()), ("state", &state)];
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "mig_instance_memory",
            "Memory of a GPU instance",
            Some(&Unit::Bytes),
            MetricType::Gauge,
        )?;
        for gpu in &cards {
            for instance in &gpu.instances {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                let (pod, uuid, container) = (
                    text(&instance.pod),
                    text(&instance.uuid),
                    text(&instance.container),
                );
                let (namespace, pod) = pod.split_once('/').unwrap_or(("", ""));
                let start = instance.start.to_string();
                let state = format!("{:?}", instance.state);
                let labels = [
                    ("node", self.node.as_str()),
                    ("device_uuid", &gpu.uuid),
                    ("mig_uuid", &uuid),
                    ("profile", &instance.profile),
                    ("placement_start", &start),
                    ("state", &state),
                    ("namespace", namespace),
                    ("pod", pod),
                    ("container", &container),
                ];
                let bytes = i64::try_from(instance.memory_mib << 20).unwrap_or(i64::MAX);
                ConstGauge::new(bytes).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
