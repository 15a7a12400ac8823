//! Reads what a pod asks for from its resources and annotations.

use std::collections::BTreeMap;

use crate::{
    config::Config,
    demand::{ContainerDemand, ContainerKind, Demand, GpuSelector, Memory, Policy},
    keys::{
        ALLOW_LARGER, ALLOW_RESTART, GPU_POLICY, NODE, NODE_POLICY, NOUSE_GPUTYPE, NOUSE_GPUUUID,
        USE_GPUTYPE, USE_GPUUUID, VGPU_MODE, VGPU_MODE_BY,
    },
    mode::{ChosenBy, UnknownMode, VgpuMode},
    quantity::{self, QuantityError, Unit},
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
    /// The container's name.
    pub name: String,
    /// When it runs.
    pub kind: ContainerKind,
    /// Resource name to quantity: limits, and requests for what has no limit.
    pub resources: BTreeMap<String, String>,
}

/// A request that no cluster could serve, in words for the pod's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The mode annotation names no mode.
    #[error("annotation {VGPU_MODE}: {0}")]
    Mode(#[from] UnknownMode),
    /// A quantity that is not a plain number.
    #[error("container {container:?}: {resource}: {quantity:?} {problem}")]
    Quantity {
        /// The container's name.
        container: String,
        /// The resource's name.
        resource: String,
        /// As written.
        quantity: String,
        /// What is wrong and how to write it right.
        problem: QuantityError,
    },
    /// Memory in MiB and in percent.
    #[error("container {container:?} asks for both {mib} and {percent}; keep one of them")]
    MemoryTwice {
        /// The container's name.
        container: String,
        /// Name of the MiB resource.
        mib: String,
        /// Name of the percent resource.
        percent: String,
    },
    /// Memory or compute, but no device.
    #[error(
        "container {container:?} asks for {resource}, but for 0 {count}; write {count}: 1 or leave it out"
    )]
    NoDevice {
        /// The container's name.
        container: String,
        /// The resource that needs a device.
        resource: String,
        /// Name of the counting resource.
        count: String,
    },
    /// Not a boolean.
    #[error("annotation {key}: {value:?} is not a boolean; write \"true\" or \"false\"")]
    Switch {
        /// The annotation's key.
        key: &'static str,
        /// As written.
        value: String,
    },
    /// Not a policy.
    #[error("annotation {key}: {value:?} is not a policy; write \"binpack\" or \"spread\"")]
    Policy {
        /// The annotation's key.
        key: &'static str,
        /// As written.
        value: String,
    },
}

impl PodRequest {
    /// Whether the pod says nothing but a number of GPUs, as a pod written for NVIDIA's own device plugin does.
    pub fn is_count_only(&self, config: &Config) -> bool {
        let sharing = &config.resource_names()[1..];
        let mut resources = self.containers.iter().flat_map(|c| c.resources.keys());
        !resources.any(|name| sharing.contains(&name.as_str()))
            && !SHARING_ANNOTATIONS
                .iter()
                .any(|key| self.annotations.contains_key(*key))
    }
}

/// Annotations that mean nothing to NVIDIA's device plugin.
const SHARING_ANNOTATIONS: [&str; 9] = [
    VGPU_MODE,
    USE_GPUTYPE,
    NOUSE_GPUTYPE,
    USE_GPUUUID,
    NOUSE_GPUUUID,
    NODE_POLICY,
    GPU_POLICY,
    ALLOW_LARGER,
    ALLOW_RESTART,
];

impl Demand {
    /// Reads the demand of a pod; `None` when it asks for none of the resources.
    pub fn read(pod: &PodRequest, config: &Config) -> Result<Option<Self>, DemandError> {
        let mut containers = Vec::new();
        for container in &pod.containers {
            containers.extend(container_demand(container, config)?);
        }
        if containers.is_empty() {
            return Ok(None);
        }
        let annotation = |key: &str| pod.annotations.get(key).map(|value| value.trim());
        let mode = annotation(VGPU_MODE)
            .map(str::parse::<VgpuMode>)
            .transpose()?;
        // What the webhook chose is a hint; only the user's choice binds the scheduler.
        let is_hint = annotation(VGPU_MODE_BY) == Some(ChosenBy::Tessera.as_str());
        let list = |key: &str| -> Vec<String> {
            let items = annotation(key).into_iter().flat_map(|text| text.split(','));
            items
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect()
        };
        let lower = |key: &str| list(key).iter().map(|item| item.to_lowercase()).collect();
        let allow_larger = switch(ALLOW_LARGER, annotation(ALLOW_LARGER))?;
        Ok(Some(Self {
            mode: mode.filter(|_| !is_hint),
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
            allow_larger: allow_larger.unwrap_or(config.allow_larger_memory),
        }))
    }
}

fn switch(key: &'static str, value: Option<&str>) -> Result<Option<bool>, DemandError> {
    match value {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(DemandError::Switch {
            key,
            value: other.to_owned(),
        }),
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

/// What a container asks for of each resource; `None`: it does not name the resource.
struct Amounts {
    count: Option<u64>,
    mib: Option<u64>,
    percent: Option<u64>,
    cores: Option<u64>,
}

impl Amounts {
    fn read(container: &ContainerRequest, config: &Config) -> Result<Self, DemandError> {
        let read = |resource: &str, unit: Unit| -> Result<Option<u64>, DemandError> {
            let quantity = container.resources.get(resource);
            let amount = quantity.map(|quantity| {
                quantity::parse(quantity, unit).map_err(|problem| DemandError::Quantity {
                    container: container.name.clone(),
                    resource: resource.to_owned(),
                    quantity: quantity.clone(),
                    problem,
                })
            });
            amount.transpose()
        };
        Ok(Self {
            count: read(&config.resource_count_name, Unit::Devices)?,
            mib: read(&config.resource_memory_name, Unit::Mib)?,
            percent: read(&config.resource_memory_percentage_name, Unit::Percent)?,
            cores: read(&config.resource_core_name, Unit::Percent)?,
        })
    }

    /// A resource that needs a device, and of which the container asks for more than nothing.
    fn needs_device<'c>(&self, config: &'c Config) -> Option<&'c String> {
        let amounts = [
            (&config.resource_memory_name, self.mib),
            (&config.resource_memory_percentage_name, self.percent),
            (&config.resource_core_name, self.cores),
        ];
        let mut asked = amounts.into_iter().filter(|(_, amount)| *amount > Some(0));
        asked.next().map(|(resource, _)| resource)
    }
}

fn container_demand(
    container: &ContainerRequest,
    config: &Config,
) -> Result<Option<ContainerDemand>, DemandError> {
    let amounts = Amounts::read(container, config)?;
    let count = match (amounts.count, amounts.needs_device(config)) {
        (None | Some(0), None) => return Ok(None),
        (Some(0), Some(resource)) => {
            return Err(DemandError::NoDevice {
                container: container.name.clone(),
                resource: resource.clone(),
                count: config.resource_count_name.clone(),
            });
        }
        (None, Some(_)) => config.default_gpu_num.max(1),
        (Some(count), _) => u32::try_from(count).unwrap_or(u32::MAX),
    };
    let percent_of = |amount: u64| u32::try_from(amount).unwrap_or(100);
    Ok(Some(ContainerDemand {
        name: container.name.clone(),
        kind: container.kind,
        count,
        memory: memory(&amounts, container, config)?,
        cores: amounts.cores.map_or(config.default_cores, percent_of),
    }))
}

fn memory(
    amounts: &Amounts,
    container: &ContainerRequest,
    config: &Config,
) -> Result<Memory, DemandError> {
    let asked = |amount: Option<u64>| amount.filter(|amount| *amount > 0);
    Ok(match (asked(amounts.mib), asked(amounts.percent)) {
        (Some(_), Some(_)) => {
            return Err(DemandError::MemoryTwice {
                container: container.name.clone(),
                mib: config.resource_memory_name.clone(),
                percent: config.resource_memory_percentage_name.clone(),
            });
        }
        (Some(mib), None) => Memory::Mib(mib),
        (None, Some(100)) => Memory::Whole,
        (None, Some(percent)) => Memory::Percent(u32::try_from(percent).unwrap_or(100)),
        (None, None) if config.default_memory > 0 => Memory::Mib(config.default_memory),
        // Compute alone asks for compute: any memory will do.
        (None, None) => match asked(amounts.cores) {
            None | Some(100) => Memory::Whole,
            Some(_) => Memory::Mib(1),
        },
    })
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

    /// Issue 12, A11.
    #[test]
    fn a_pod_that_says_nothing_but_a_number_is_count_only() {
        let gpu = ("nvidia.com/gpu", "1");
        for (resources, annotations, count_only) in [
            (vec![gpu, ("cpu", "1")], vec![("note", "mine")], true),
            (vec![gpu, ("nvidia.com/gpumem", "1")], vec![], false),
            (vec![gpu, ("nvidia.com/gpucores", "1")], vec![], false),
            (
                vec![gpu, ("nvidia.com/gpumem-percentage", "100")],
                vec![],
                false,
            ),
            (vec![gpu], vec![(VGPU_MODE, "mig")], false),
            (vec![gpu], vec![(USE_GPUTYPE, "A100")], false),
        ] {
            let pod = pod(&resources, &annotations);
            assert_eq!(pod.is_count_only(&Config::default()), count_only, "{pod:?}");
        }
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

    #[track_caller]
    fn is_refused(resources: &[(&str, &str)], annotations: &[(&str, &str)], words: &str) {
        let error = read(resources, annotations).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn a_bad_quantity_is_refused_with_the_way_to_write_it() {
        let gpu = ("nvidia.com/gpu", "1");
        for (resource, quantity, words) in [
            ("nvidia.com/gpumem", "8Gi", "write 8192"),
            ("nvidia.com/gpumem", "lots", "such as 8000"),
            ("nvidia.com/gpumem-percentage", "150", "from 0 to 100"),
            ("nvidia.com/gpucores", "101", "from 0 to 100"),
        ] {
            is_refused(&[gpu, (resource, quantity)], &[], words);
        }
        let many = ("nvidia.com/gpu", "99999999999999999999");
        is_refused(&[many], &[], "such as 1");
        is_refused(&[("nvidia.com/gpu", "5000")], &[], "smaller number");
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_the_way_to_write_it() {
        let mib = ("nvidia.com/gpumem", "1");
        is_refused(
            &[("nvidia.com/gpu", "0"), mib],
            &[],
            "write nvidia.com/gpu: 1",
        );
        let percent = ("nvidia.com/gpumem-percentage", "1");
        is_refused(&[mib, percent], &[], "keep one of them");
    }

    #[test]
    fn a_bad_annotation_is_refused_with_the_way_to_write_it() {
        for (key, value, words) in [
            (VGPU_MODE, "migg", "write \"mig\" or \"hami-core\""),
            (GPU_POLICY, "best", "write \"binpack\" or \"spread\""),
            (ALLOW_LARGER, "yes", "write \"true\" or \"false\""),
        ] {
            is_refused(&[("nvidia.com/gpu", "1")], &[(key, value)], words);
        }
    }

    #[test]
    fn model_names_are_compared_in_lower_case_and_uuids_as_they_are() {
        let annotations = [(USE_GPUTYPE, "a100, H100"), (NOUSE_GPUUUID, "GPU-2")];
        let demand = read(&[("nvidia.com/gpu", "1")], &annotations).unwrap();
        assert_eq!(demand.gpus.types, ["a100", "h100"]);
        assert_eq!(demand.gpus.not_uuids, ["GPU-2"]);
    }
}
