//! Metrics of GPUs and instances, computed from the inventory when they are scraped.

use std::{fmt, sync::Arc};

use domain::{
    gpu::{Gpu, Instance, InstanceState},
    pod::PodName,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use tokio::sync::watch;

use crate::{gpus::inventory::Inventory, publish::gpus};

/// Computes the metrics of GPUs and instances.
#[derive(Debug)]
pub(crate) struct GpuCollector {
    /// Value of the label `node`.
    pub(crate) node_name: String,
    pub(crate) inventory: watch::Receiver<Arc<Inventory>>,
}

impl Collector for GpuCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let inventory = self.inventory.borrow().clone();
        let gpus = gpus::published(&inventory, 0);
        self.encode_gpus(&gpus, &mut encoder)?;
        self.encode_instance_counts(&gpus, &mut encoder)?;
        self.encode_instance_memory(&gpus, &mut encoder)
    }
}

impl GpuCollector {
    fn encode_gpus(&self, gpus: &[Gpu], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "gpu_info",
            "Health of a GPU: 1 if it is healthy, 0 if not",
            None,
            MetricType::Gauge,
        )?;
        for gpu in gpus {
            let mode = gpu.mode.to_string();
            let labels = [
                ("node", self.node_name.as_str()),
                ("device_uuid", &gpu.uuid),
                ("device_type", &gpu.model),
                ("mode", &mode),
            ];
            let healthy = i64::from(gpu.unhealthy.is_none());
            ConstGauge::new(healthy).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_instance_counts(
        &self,
        gpus: &[Gpu],
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "mig_instances",
            "Number of GPU instances per state",
            None,
            MetricType::Gauge,
        )?;
        for state in InstanceState::ALL {
            let all = gpus.iter().flat_map(|gpu| &gpu.instances);
            let count = all.filter(|instance| instance.state == state).count();
            let state = format!("{state:?}");
            let labels = [("node", self.node_name.as_str()), ("state", &state)];
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_instance_memory(
        &self,
        gpus: &[Gpu],
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "mig_instance_memory",
            "Memory of a GPU instance",
            Some(&Unit::Bytes),
            MetricType::Gauge,
        )?;
        let instances = gpus
            .iter()
            .flat_map(|gpu| gpu.instances.iter().map(move |instance| (gpu, instance)));
        for (gpu, instance) in instances {
            let (start, state) = (instance.start.to_string(), format!("{:?}", instance.state));
            let pod = pod_of(instance);
            let labels = [
                ("node", self.node_name.as_str()),
                ("device_uuid", &gpu.uuid),
                ("mig_uuid", instance.uuid.as_deref().unwrap_or_default()),
                ("profile", &instance.profile),
                ("placement_start", &start),
                ("state", &state),
                ("namespace", pod.as_ref().map_or("", |pod| &pod.namespace)),
                ("pod", pod.as_ref().map_or("", |pod| &pod.name)),
                (
                    "container",
                    instance.container.as_deref().unwrap_or_default(),
                ),
            ];
            let bytes = i64::try_from(instance.memory_mib << 20).unwrap_or(i64::MAX);
            ConstGauge::new(bytes).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn pod_of(instance: &Instance) -> Option<PodName> {
    instance.pod.as_ref()?.parse().ok()
}
