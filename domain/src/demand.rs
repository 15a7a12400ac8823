//! What a pod asks for, container by container, read from its resources and annotations.

use std::collections::BTreeMap;

use crate::{
    config::Config,
    keys::{
        ALLOW_LARGER, GPU_POLICY, NODE, NODE_POLICY, NOUSE_GPUTYPE, NOUSE_GPUUUID, USE_GPUTYPE,
        USE_GPUUUID, VGPU_MODE, VGPU_MODE_BY,
    },
    mode::{ChosenBy, VgpuMode},
};

/// The part of a pod that a demand is read from; filled from the pod object by whoever has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRequest {
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Init containers first, then the others, both in the pod's order.
    pub containers: Vec<ContainerRequest>,
}

/// One container of a [`PodRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub kind: ContainerKind,
    /// Resource name to quantity: limits, and requests for what has no limit.
    pub resources: BTreeMap<String, String>,
}

/// When a container of a pod runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerKind {
    /// Before the application containers, alone, to its end.
    Init,
    /// An init container with `restartPolicy: Always`: from its turn to the pod's end (KEP-753).
    Sidecar,
    /// With all other application containers.
    #[default]
    App,
}

/// Memory of each device of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// All of the card.
    Whole,
    /// At least so many MiB.
    Mib(u64),
    /// At least so many percent of the card's memory, 1 to 100.
    Percent(u32),
}

impl Memory {
    /// The MiB that are asked for of a GPU that has so many.
    pub fn mib_of(self, gpu_mib: u64) -> u64 {
        match self {
            Self::Whole => gpu_mib,
            Self::Mib(mib) => mib,
            Self::Percent(percent) => (gpu_mib * u64::from(percent)).div_ceil(100),
        }
    }
}

/// What one container asks for; containers without GPU have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDemand {
    /// The container's name.
    pub name: String,
    /// When it runs.
    pub kind: ContainerKind,
    /// Devices.
    pub count: u32,
    /// Memory of each device.
    pub memory: Memory,
    /// Percent of the card's compute that each device must have at least, 0 to 100.
    pub cores: u32,
}

/// Whether to fill what is used or to use what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Fill the fullest first.
    Binpack,
    /// Use the emptiest first.
    Spread,
}

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The mode that the user insists on.
    pub mode: Option<VgpuMode>,
    /// Containers with GPU, in the order in which they start.
    pub containers: Vec<ContainerDemand>,
    /// Which cards will do.
    pub gpus: GpuSelector,
    /// Wish for the choice of node; without one the least loss of capacity decides.
    pub node_policy: Option<Policy>,
    /// Wish for the choice of GPU on the node.
    pub gpu_policy: Option<Policy>,
    /// The node that the webhook hinted at.
    pub hint: Option<String>,
    /// Whether a device may have a larger memory size than the smallest sufficient one when that is full.
    pub allow_larger: bool,
}

/// Which cards a pod accepts, by the annotations `use-gputype`, `nouse-gputype`, `use-gpuuuid` and `nouse-gpuuuid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuSelector {
    /// Parts of model names, lower case; empty: any.
    pub types: Vec<String>,
    /// Parts of model names that are refused, lower case.
    pub not_types: Vec<String>,
    /// UUIDs; empty: any.
    pub uuids: Vec<String>,
    /// UUIDs that are refused.
    pub not_uuids: Vec<String>,
}

/// A request that nobody could serve, in words for the pod's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The mode annotation names no mode.
    #[error("annotation {VGPU_MODE}: {0}")]
    Mode(#[from] crate::mode::UnknownMode),
    /// A quantity that is no plain number.
    #[error("container {container:?}: {resource}: {quantity:?} {problem}")]
    Quantity {
        /// The container.
        container: String,
        /// The resource.
        resource: String,
        /// As written.
        quantity: String,
        /// What is wrong and how to write it right.
        problem: String,
    },
    /// Memory given twice.
    #[error("container {container:?} asks for both {mib} and {percent}; keep one of them")]
    MemoryTwice {
        /// The container.
        container: String,
        /// Name of the MiB resource.
        mib: String,
        /// Name of the percent resource.
        percent: String,
    },
    /// Memory or compute of no device.
    #[error(
        "container {container:?} asks for {resource} but for 0 {count}; write {count}: 1 or leave it out"
    )]
    NoDevice {
        /// The container.
        container: String,
        /// The resource that needs a device.
        resource: String,
        /// Name of the counting resource.
        count: String,
    },
    /// Neither yes nor no.
    #[error("annotation {key}: {value:?} is neither \"true\" nor \"false\"")]
    Switch {
        /// The annotation.
        key: &'static str,
        /// As written.
        value: String,
    },
    /// A policy that is none.
    #[error("annotation {key}: {value:?} is no policy; write \"binpack\" or \"spread\"")]
    Policy {
        /// The annotation.
        key: &'static str,
        /// As written.
        value: String,
    },
}

impl Demand {
    /// Reads the demand of a pod; `None` when it asks for none of the resources.
    pub fn read(pod: &PodRequest, config: &Config) -> Result<Option<Self>, DemandError> {
        let mut containers = Vec::new();
        for container in &pod.containers {
            containers.extend(container_demand(container, config)?);
        }
        let annotation = |key: &str| pod.annotations.get(key).map(|value| value.trim());
        if containers.is_empty() {
            return Ok(None);
        }
        let mode = annotation(VGPU_MODE)
            .map(str::parse::<VgpuMode>)
            .transpose()?;
        let chosen_by_us = annotation(VGPU_MODE_BY) == Some(ChosenBy::Tessera.as_str());
        let list = |key: &str| -> Vec<String> {
            annotation(key)
                .into_iter()
                .flat_map(|text| text.split(','))
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect()
        };
        let lower = |key: &str| list(key).iter().map(|item| item.to_lowercase()).collect();
        Ok(Some(Self {
            mode: mode.filter(|_| !chosen_by_us),
            containers,
            gpus: GpuSelector {
                types: lower(USE_GPUTYPE),
                not_types: lower(NOUSE_GPUTYPE),
                uuids: list(USE_GPUUUID),
                not_uuids: list(NOUSE_GPUUUID),
            },
            node_policy: policy(NODE_POLICY, annotation(NODE_POLICY))?,
            gpu_policy: policy(GPU_POLICY, annotation(GPU_POLICY))?,
            hint: annotation(NODE).map(str::to_owned),
            allow_larger: match annotation(ALLOW_LARGER) {
                None => config.allow_larger_memory,
                Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    return Err(DemandError::Switch {
                        key: ALLOW_LARGER,
                        value: other.to_owned(),
                    });
                }
            },
        }))
    }
}

fn policy(key: &'static str, value: Option<&str>) -> Result<Option<Policy>, DemandError> {
    match value {
        None => Ok(None),
        Some("binpack") => Ok(Some(Policy::Binpack)),
        Some("spread") => Ok(Some(Policy::Spread)),
        Some(other) => Err(DemandError::Policy {
            key,
            value: other.to_owned(),
        }),
    }
}

fn container_demand(
    container: &ContainerRequest,
    config: &Config,
) -> Result<Option<ContainerDemand>, DemandError> {
    let name = &container.name;
    let read = |resource: &str, unit: Unit| -> Result<Option<u64>, DemandError> {
        container
            .resources
            .get(resource)
            .map(|quantity| {
                parse_quantity(quantity, unit).map_err(|problem| DemandError::Quantity {
                    container: name.clone(),
                    resource: resource.to_owned(),
                    quantity: quantity.clone(),
                    problem,
                })
            })
            .transpose()
    };
    let count = read(&config.resource_count_name, Unit::Count)?;
    let mib = read(&config.resource_memory_name, Unit::Mib)?;
    let percent = read(&config.resource_memory_percentage_name, Unit::Percent)?;
    let cores = read(&config.resource_core_name, Unit::Percent)?;

    let asks_more = [
        (&config.resource_memory_name, mib),
        (&config.resource_memory_percentage_name, percent),
        (&config.resource_core_name, cores),
    ]
    .into_iter()
    .find(|(_, value)| value.is_some_and(|value| value > 0));
    let count = match (count, asks_more) {
        (None | Some(0), None) => return Ok(None),
        (Some(0), Some((resource, _))) => {
            return Err(DemandError::NoDevice {
                container: name.clone(),
                resource: resource.clone(),
                count: config.resource_count_name.clone(),
            });
        }
        (None, Some(_)) => config.default_gpu_num.max(1),
        (Some(count), _) => u32::try_from(count).unwrap_or(u32::MAX),
    };
    let whole_or = |mib| {
        if mib == 0 {
            Memory::Whole
        } else {
            Memory::Mib(mib)
        }
    };
    let memory = match (
        mib.filter(|mib| *mib > 0),
        percent.filter(|percent| *percent > 0),
    ) {
        (Some(_), Some(_)) => {
            return Err(DemandError::MemoryTwice {
                container: name.clone(),
                mib: config.resource_memory_name.clone(),
                percent: config.resource_memory_percentage_name.clone(),
            });
        }
        (Some(mib), None) => Memory::Mib(mib),
        (None, Some(100)) => Memory::Whole,
        (None, Some(percent)) => Memory::Percent(u32::try_from(percent).unwrap_or(100)),
        // Compute alone asks for compute: any memory will do, unless there is a default.
        (None, None) if cores.is_some_and(|cores| cores > 0) && config.default_memory == 0 => {
            if cores == Some(100) {
                Memory::Whole
            } else {
                Memory::Mib(1)
            }
        }
        (None, None) => whole_or(config.default_memory),
    };
    Ok(Some(ContainerDemand {
        name: name.clone(),
        kind: container.kind,
        count,
        memory,
        cores: cores.map_or(config.default_cores, |cores| {
            u32::try_from(cores).unwrap_or(100)
        }),
    }))
}

#[derive(Clone, Copy)]
enum Unit {
    Count,
    Mib,
    Percent,
}

/// Reads a Kubernetes quantity that must be a plain whole number.
///
/// API machinery may rewrite `8000` as `8k`, so decimal `k` is taken; a suffix that can only come
/// from taking the resource for bytes (`8Gi`) is refused with the number that was meant.
fn parse_quantity(text: &str, unit: Unit) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let plain = || match unit {
        Unit::Count => "is no number of devices; write a whole number, such as 1".to_owned(),
        Unit::Mib => "is no number of MiB; write a whole number, such as 8000".to_owned(),
        Unit::Percent => "is no percentage; write a whole number from 0 to 100".to_owned(),
    };
    let number: u64 = number.parse().map_err(|_| plain())?;
    let value = match (suffix, unit) {
        ("", _) => number,
        ("k", _) => number.checked_mul(1000).ok_or_else(plain)?,
        ("M", Unit::Mib) if number <= 1 => number * 1_000_000,
        ("Ki" | "Mi" | "Gi" | "Ti" | "M" | "G" | "T", Unit::Mib) => {
            let mib = match suffix {
                "Ki" => number / 1024,
                "Mi" => number,
                "Gi" => number.saturating_mul(1024),
                "Ti" => number.saturating_mul(1024 * 1024),
                "M" => number.saturating_mul(1_000_000) / (1024 * 1024),
                "G" => number.saturating_mul(1_000_000_000) / (1024 * 1024),
                _ => number.saturating_mul(1_000_000_000_000) / (1024 * 1024),
            };
            return Err(format!(
                "has a unit, but this resource counts MiB already; write {}",
                mib.max(1)
            ));
        }
        _ => return Err(plain()),
    };
    match unit {
        Unit::Percent if value > 100 => {
            Err("is more than 100 percent; write a whole number from 0 to 100".to_owned())
        }
        Unit::Count if value > 1024 => {
            Err("is more devices than any node has; write a smaller number".to_owned())
        }
        _ => Ok(value),
    }
}

impl GpuSelector {
    /// Whether a card will do.
    pub fn accepts(&self, model: &str, uuid: &str) -> bool {
        let model = model.to_lowercase();
        let has = |list: &[String]| list.iter().any(|part| model.contains(part));
        (self.types.is_empty() || has(&self.types))
            && !has(&self.not_types)
            && (self.uuids.is_empty() || self.uuids.iter().any(|item| item == uuid))
            && !self.not_uuids.iter().any(|item| item == uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &[(&str, &str)], annotations: &[(&str, &str)]) -> PodRequest {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        PodRequest {
            annotations: map(annotations),
            containers: vec![ContainerRequest {
                name: "main".into(),
                kind: ContainerKind::App,
                resources: map(resources),
            }],
        }
    }

    fn read(resources: &[(&str, &str)], annotations: &[(&str, &str)]) -> Result<Demand, String> {
        Demand::read(&pod(resources, annotations), &Config::default())
            .map(|demand| demand.expect("asks for a GPU"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_pod_of_the_seed() {
        let demand = read(
            &[("nvidia.com/gpu", "2"), ("nvidia.com/gpumem", "8000")],
            &[(VGPU_MODE, "mig")],
        )
        .unwrap();
        assert_eq!(demand.mode, Some(VgpuMode::Mig));
        assert_eq!(
            (demand.containers[0].count, demand.containers[0].memory),
            (2, Memory::Mib(8000))
        );
    }

    #[test]
    fn a_quantity_rewritten_by_api_machinery_is_the_same() {
        assert_eq!(
            read(&[("nvidia.com/gpumem", "8k")], &[]),
            read(&[("nvidia.com/gpumem", "8000")], &[])
        );
    }

    #[test]
    fn a_count_alone_is_whole_cards_and_memory_alone_is_one_device() {
        let whole = read(&[("nvidia.com/gpu", "1")], &[]).unwrap();
        assert_eq!(whole.containers[0].memory, Memory::Whole);
        let one = read(&[("nvidia.com/gpumem", "100")], &[]).unwrap();
        assert_eq!(one.containers[0].count, 1);
        let percent = read(&[("nvidia.com/gpumem-percentage", "100")], &[]).unwrap();
        assert_eq!(percent.containers[0].memory, Memory::Whole);
        let cores = read(&[("nvidia.com/gpucores", "30")], &[]).unwrap();
        assert_eq!(
            (cores.containers[0].memory, cores.containers[0].cores),
            (Memory::Mib(1), 30)
        );
    }

    #[test]
    fn a_mode_chosen_by_us_is_no_constraint() {
        let pod = [(VGPU_MODE, "mig"), (VGPU_MODE_BY, "tessera"), (NODE, "n1")];
        let demand = read(&[("nvidia.com/gpu", "1")], &pod).unwrap();
        assert_eq!((demand.mode, demand.hint.as_deref()), (None, Some("n1")));
    }

    #[test]
    fn a_pod_without_our_resources_asks_for_nothing() {
        for resources in [&[("cpu", "1")][..], &[("nvidia.com/gpu", "0")]] {
            assert_eq!(
                Demand::read(&pod(resources, &[]), &Config::default()),
                Ok(None)
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_way_to_write_it() {
        let gpu = ("nvidia.com/gpu", "1");
        for (resources, annotations, words) in [
            (
                vec![gpu, ("nvidia.com/gpumem", "8Gi")],
                vec![],
                "write 8192",
            ),
            (
                vec![gpu, ("nvidia.com/gpumem", "8000Mi")],
                vec![],
                "write 8000",
            ),
            (vec![gpu, ("nvidia.com/gpumem", "8G")], vec![], "write 7629"),
            (
                vec![gpu, ("nvidia.com/gpumem", "lots")],
                vec![],
                "such as 8000",
            ),
            (
                vec![gpu, ("nvidia.com/gpumem", "-1")],
                vec![],
                "such as 8000",
            ),
            (
                vec![gpu, ("nvidia.com/gpumem-percentage", "150")],
                vec![],
                "from 0 to 100",
            ),
            (
                vec![gpu, ("nvidia.com/gpucores", "101")],
                vec![],
                "from 0 to 100",
            ),
            (
                vec![("nvidia.com/gpu", "99999999999999999999")],
                vec![],
                "such as 1",
            ),
            (vec![("nvidia.com/gpu", "5000")], vec![], "smaller number"),
            (
                vec![("nvidia.com/gpu", "0"), ("nvidia.com/gpumem", "1")],
                vec![],
                "write nvidia.com/gpu: 1",
            ),
            (
                vec![
                    ("nvidia.com/gpumem", "1"),
                    ("nvidia.com/gpumem-percentage", "1"),
                ],
                vec![],
                "keep one of them",
            ),
            (
                vec![gpu],
                vec![(VGPU_MODE, "migg")],
                "write \"mig\" or \"hami-core\"",
            ),
            (
                vec![gpu],
                vec![(GPU_POLICY, "best")],
                "write \"binpack\" or \"spread\"",
            ),
        ] {
            let error = read(&resources, &annotations).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn cards_are_selected_as_in_hami() {
        let demand = read(
            &[("nvidia.com/gpu", "1")],
            &[(USE_GPUTYPE, "a100, H100"), (NOUSE_GPUUUID, "GPU-2")],
        )
        .unwrap();
        assert!(demand.gpus.accepts("NVIDIA A100-SXM4-80GB", "GPU-1"));
        assert!(!demand.gpus.accepts("NVIDIA A100-SXM4-80GB", "GPU-2"));
        assert!(!demand.gpus.accepts("NVIDIA A30", "GPU-1"));
    }
}
