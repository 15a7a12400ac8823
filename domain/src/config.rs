//! The settings that the parts share, with the field names of `HAMi`'s device configuration.

use serde::Deserialize;

use crate::{
    gpu::{Model, Offer},
    mode::NodeMode,
    rule::Rule,
};

/// The `nvidia` block of the configuration file; every field may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Config {
    /// Resource that counts devices.
    pub resource_count_name: String,
    /// Resource that asks for MiB per device.
    pub resource_memory_name: String,
    /// Resource that asks for percent of the GPU's memory per device.
    pub resource_memory_percentage_name: String,
    /// Resource that asks for percent of the GPU's compute per device.
    pub resource_core_name: String,
    /// MiB per device where the pod asks for none; 0 is the whole GPU.
    pub default_memory: u64,
    /// Percent of compute per device where the pod asks for none.
    pub default_cores: u32,
    /// Devices of a container that asks for memory or compute only.
    #[serde(rename = "defaultGPUNum")]
    pub default_gpu_num: u32,
    /// Device ids per GPU in kubelet, and the most software shares that it takes.
    pub device_split_count: u32,
    /// Whether a profile serves requests up to the size in its name, although the GPU gives a little
    /// less: `1g.10gb` serves 10240 MiB, but has 9,728 on an A100.
    pub nominal_memory: bool,
    /// Whether a pod may get a larger memory size where every place for the smallest sufficient one is
    /// taken; the annotation `nvidia.com/allow-larger-memory` overrides it.
    pub allow_larger_memory: bool,
    /// Layouts that GPUs of the listed models are kept to; every legal layout for the others.
    pub known_mig_geometries: Vec<KnownGeometries>,
    /// Whether a pod that fits nowhere preempts pods of lower priority.
    pub preemption: bool,
    /// The rule by which placements are chosen: `demand`, `tuned`, `fixed`, `mfi`, `mfi-all` or `fgd`.
    pub placement: PlacementPolicy,
    /// MiB of GPUs whose memory NVML cannot report (GB10, DGX Spark: unified memory); 0: such a GPU is only given whole.
    pub pre_configured_device_memory: u64,
    /// Settings of single nodes.
    pub nodeconfig: Vec<NodeConfig>,
}

/// A rule that the scheduler can place by: one that weighs the states of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Rule")]
pub struct PlacementPolicy(Rule);

impl PlacementPolicy {
    /// The rule.
    pub fn rule(self) -> Rule {
        self.0
    }
}

/// A rule that the scheduler cannot place by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} is for simulations only; write one of: {}", usable().join(", "))]
pub struct SimulationOnly {
    /// The rule that was written.
    pub rule: Rule,
}

fn usable() -> Vec<String> {
    let usable = Rule::ALL.iter().filter(|rule| !rule.is_simulation_only());
    usable.map(Rule::to_string).collect()
}

impl TryFrom<Rule> for PlacementPolicy {
    type Error = SimulationOnly;

    fn try_from(rule: Rule) -> Result<Self, SimulationOnly> {
        if rule.is_simulation_only() {
            return Err(SimulationOnly { rule });
        }
        Ok(Self(rule))
    }
}

/// Settings of one node, as in `HAMi`'s `nodeconfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name, exactly.
    pub name: String,
    /// Mode of the node's GPUs where the node has no label `nvidia.com/vgpu-mode`.
    pub operatingmode: Option<NodeMode>,
    /// GPUs that work in another mode than the node's, whatever its label is.
    pub devicemodes: Vec<DeviceMode>,
    /// GPUs that Tessera does not manage.
    pub filterdevices: FilterDevices,
    /// In place of [`Config::pre_configured_device_memory`] on this node.
    pub preconfigureddevicememory: Option<u64>,
}

/// The mode of one GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMode {
    /// By UUID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// By NVML index.
    #[serde(default)]
    pub index: Option<u32>,
    /// The mode that it works in.
    pub operatingmode: NodeMode,
}

/// GPUs that Tessera does not manage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterDevices {
    /// By UUID.
    pub uuid: Vec<String>,
    /// By NVML index.
    pub index: Vec<u32>,
}

/// The layouts of some models, in the order in which they are tried, as in `HAMi`'s `knownMigGeometries`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KnownGeometries {
    /// Parts of NVML's names: `A100-SXM4-80GB`, `A30`. Blanks equal hyphens, and case is ignored.
    pub models: Vec<String>,
    /// The layouts.
    pub allowed_geometries: Vec<Geometry>,
}

/// How many instances of which profiles a GPU is cut into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Geometry(pub Vec<GeometryInstances>);

/// Instances of one profile in a [`Geometry`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeometryInstances {
    /// The profile, `1g.10gb`.
    pub name: String,
    /// How many.
    pub count: u32,
    /// Ignored: read for compatibility, NVML reports it.
    #[serde(default)]
    pub core: u32,
    /// Ignored: read for compatibility, NVML reports it.
    #[serde(default)]
    pub memory: u64,
}

impl Geometry {
    /// The offers of its instances, each as often as it occurs. What the GPU does not offer is left out.
    pub fn offers<'m>(&self, model: &'m Model) -> Vec<&'m Offer> {
        let all = self.0.iter();
        all.filter_map(|instances| Some((model.offer(&instances.name)?, instances.count)))
            .flat_map(|(offer, count)| (0..count).map(move |_| offer))
            .collect()
    }
}

impl FilterDevices {
    /// Whether Tessera leaves this GPU alone.
    pub fn excludes(&self, index: u32, uuid: &str) -> bool {
        self.index.contains(&index) || self.uuid.iter().any(|known| known == uuid)
    }
}

impl DeviceMode {
    /// Whether the entry is for this GPU; one that has both a UUID and an index must match both.
    pub fn applies_to(&self, index: u32, uuid: &str) -> bool {
        let named = self.uuid.is_some() || self.index.is_some();
        named
            && self.index.is_none_or(|known| known == index)
            && self.uuid.as_deref().is_none_or(|known| known == uuid)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resource_count_name: "nvidia.com/gpu".to_owned(),
            resource_memory_name: "nvidia.com/gpumem".to_owned(),
            resource_memory_percentage_name: "nvidia.com/gpumem-percentage".to_owned(),
            resource_core_name: "nvidia.com/gpucores".to_owned(),
            default_memory: 0,
            default_cores: 0,
            default_gpu_num: 1,
            device_split_count: 10,
            nominal_memory: true,
            allow_larger_memory: false,
            known_mig_geometries: vec![],
            preemption: true,
            placement: PlacementPolicy::default(),
            pre_configured_device_memory: 0,
            nodeconfig: vec![],
        }
    }
}

impl Config {
    /// The settings of a node; the defaults where it has none.
    pub fn node(&self, name: &str) -> NodeConfig {
        self.nodeconfig
            .iter()
            .find(|node| node.name == name)
            .cloned()
            .unwrap_or_default()
    }

    /// MiB of the GPUs of a node whose memory NVML cannot report; `None`: not set.
    pub fn preconfigured_memory(&self, node: &str) -> Option<u64> {
        let own = self.node(node).preconfigureddevicememory;
        Some(own.unwrap_or(self.pre_configured_device_memory)).filter(|mib| *mib > 0)
    }

    /// The layouts that a model's GPUs are kept to, in order; `None`: every legal one.
    ///
    /// Of several entries that match, the one with the longest name counts; `H20` does not match an `H200`.
    pub fn geometries(&self, model: &Model) -> Option<Vec<&Geometry>> {
        if self.known_mig_geometries.is_empty() {
            return None;
        }
        let name = plain(&model.name);
        let names = |name_of: &str| {
            let part = plain(name_of);
            let whole = |at: usize| {
                let after = name[at + part.len()..].chars().next();
                let before = name[..at].chars().next_back();
                let apart = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric());
                apart(before) && apart(after)
            };
            !part.is_empty() && name.match_indices(&part).any(|(at, _)| whole(at))
        };
        let all = self.known_mig_geometries.iter();
        let matching = all.flat_map(|known| known.models.iter().map(move |name| (name, known)));
        let (_, known) = matching
            .filter(|(part, _)| names(part))
            .max_by_key(|(part, _)| part.len())?;
        Some(known.allowed_geometries.iter().collect())
    }

    /// The four resource names.
    pub fn resource_names(&self) -> [&str; 4] {
        [
            &self.resource_count_name,
            &self.resource_memory_name,
            &self.resource_memory_percentage_name,
            &self.resource_core_name,
        ]
    }
}

/// Lower case, blanks as hyphens.
fn plain(name: &str) -> String {
    name.to_lowercase().replace([' ', '_'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn geometries_are_those_of_the_longest_name_that_matches() {
        let config: Config = serde_json::from_str(
            r#"{"knownMigGeometries":[
                {"models":["H20","A100 SXM4 80GB"],"allowedGeometries":[[{"name":"1g.10gb","core":14,"memory":10240,"count":7}]]},
                {"models":["A100"],"allowedGeometries":[]}]}"#,
        )
        .unwrap();
        let known = |model: Model| config.geometries(&model).map(|known| known.len());
        assert_eq!(known(fixtures::a100_80gb()), Some(1));
        assert_eq!(known(fixtures::model("a100-40gb").unwrap()), Some(0));
        assert_eq!(
            known(fixtures::model("h200").unwrap()),
            None,
            "H20 is another GPU"
        );
        let only = &config.known_mig_geometries[0].allowed_geometries[0];
        assert_eq!(only.offers(&fixtures::a100_80gb()).len(), 7);
    }

    #[test]
    fn the_rule_of_placement_is_one_that_weighs_states() {
        let read = |rule: &str| {
            let text = format!(r#"{{"placement":"{rule}"}}"#);
            serde_json::from_str::<Config>(&text).map_err(|error| error.to_string())
        };
        assert_eq!(read("fgd").unwrap().placement.rule(), Rule::Fgd);
        assert!(read("first-fit").unwrap_err().contains("simulations only"));
        assert!(read("best").unwrap_err().contains("write one of"));
    }

    /// Issue 12: a GPU whose memory NVML cannot report has the size of the settings, the node's own first.
    #[test]
    fn the_memory_that_is_set_for_a_node_counts_before_that_for_all() {
        let config: Config = serde_json::from_str(
            r#"{"preConfiguredDeviceMemory":98304,"nodeconfig":[
                {"name":"small","preconfigureddevicememory":65536},{"name":"none","preconfigureddevicememory":0}]}"#,
        )
        .unwrap();
        let mib = ["small", "none", "other"].map(|node| config.preconfigured_memory(node));
        assert_eq!(mib, [Some(65_536), None, Some(98_304)]);
        assert_eq!(Config::default().preconfigured_memory("n"), None);
    }

    #[test]
    fn hami_field_names_are_read() {
        let config: Config = serde_json::from_str(
            r#"{"resourceCountName":"x/gpu","defaultGPUNum":2,"deviceSplitCount":4,
                "nodeconfig":[{"name":"n","operatingmode":"mig","filterdevices":{"uuid":["GPU-1"],"index":[3]},
                    "devicemodes":[{"index":2,"operatingmode":"hami-core"}]}]}"#,
        )
        .unwrap();
        assert_eq!(config.resource_names()[0], "x/gpu");
        assert_eq!(config.default_gpu_num, 2);
        let node = config.node("n");
        assert_eq!(node.operatingmode, Some(NodeMode::Mig));
        assert_eq!(node.filterdevices.index, [3]);
        let excluded = |index, uuid| node.filterdevices.excludes(index, uuid);
        assert_eq!(
            (
                excluded(3, "GPU-3"),
                excluded(0, "GPU-1"),
                excluded(0, "GPU-0")
            ),
            (true, true, false)
        );
        assert!(
            node.devicemodes[0].applies_to(2, "GPU-2")
                && !node.devicemodes[0].applies_to(1, "GPU-1")
        );
        assert_eq!(config.node("other"), NodeConfig::default());
    }
}
