//! What is simulated: nodes and pods, from the files that people have.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, anyhow, bail};
use domain::{
    config::Config,
    demand::{ContainerKind, Demand},
    fixtures,
    gpu::Gpu,
    mode::VgpuMode,
    request::{ContainerRequest, PodRequest},
    status::GpuNodeStatus,
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

/// A pod of a simulation.
#[derive(Clone, Debug)]
pub struct SimulatedPod {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub demand: Demand,
    /// When it comes, seconds.
    pub arrival: f64,
    /// How long it runs, seconds; for ever without.
    pub lifetime: Option<f64>,
}

/// Reads the nodes: a file with `GpuNode`s or a list, or the list itself.
pub fn nodes(text: &str, gpus_per_node: u32) -> anyhow::Result<Vec<(String, GpuNodeStatus)>> {
    let path = Path::new(text);
    let nodes = if path.is_file() {
        let content = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        match list(&content, gpus_per_node) {
            Some(nodes) => nodes,
            None => gpu_nodes(&content),
        }
        .with_context(|| format!("{} is refused", path.display()))?
    } else {
        list(text, gpus_per_node).unwrap_or_else(|| {
            Err(anyhow!(
                "{text:?} is neither a file nor a list of GPUs; write \"100 x a100-80gb\""
            ))
        })?
    };
    if nodes.is_empty() {
        bail!("there is no node with GPUs");
    }
    Ok(nodes)
}

/// `100 x a100-80gb, 8 x a30 hami-core`, a part a line or separated by commas; `None` where that is something else.
fn list(text: &str, gpus_per_node: u32) -> Option<anyhow::Result<Vec<(String, GpuNodeStatus)>>> {
    let parts = text.split([',', '\n']).map(str::trim);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let read = |part: &str| -> Option<(u32, String, Option<String>)> {
        let words: Vec<&str> = part.split_whitespace().collect();
        match words[..] {
            [count, "x", model] => Some((count.parse().ok()?, model.to_owned(), None)),
            [count, "x", model, mode] => {
                Some((count.parse().ok()?, model.to_owned(), Some(mode.to_owned())))
            }
            _ => None,
        }
    };
    let parts: Option<Vec<_>> = parts.into_iter().map(read).collect();
    let parts = parts.filter(|parts| !parts.is_empty())?;
    let made = parts.into_iter().map(|(count, key, mode)| {
        let model = fixtures::model(&key).ok_or_else(|| {
            let known = fixtures::model_keys().join(", ");
            anyhow!("no model {key:?} is known; write one of: {known}")
        })?;
        let mode: VgpuMode = mode.map_or(Ok(VgpuMode::Mig), |mode| mode.parse())?;
        let nodes = count.div_ceil(gpus_per_node);
        Ok((0..nodes).map(move |node| {
            let name = format!("{key}-{node}");
            let gpus = gpus_per_node.min(count - node * gpus_per_node);
            let status = fixtures::node(&name, &model, gpus, mode);
            (name, status)
        }))
    });
    let made: anyhow::Result<Vec<_>> = made.collect();
    Some(made.map(|nodes| nodes.into_iter().flatten().collect()))
}

/// The output of `kubectl get gpunodes -o yaml`, or one of them.
fn gpu_nodes(text: &str) -> anyhow::Result<Vec<(String, GpuNodeStatus)>> {
    let mut nodes = Vec::new();
    for object in objects(text)? {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if kind != "GpuNode" {
            bail!("there is a {kind:?}; write the output of `kubectl get gpunodes -o yaml`");
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let status: GpuNodeStatus = serde_json::from_value(object["status"].clone())
            .with_context(|| format!("the status of gpunode {name:?} is not readable"))?;
        nodes.push((name.to_owned(), status));
    }
    Ok(nodes)
}

/// All objects of a file, those of lists each by itself.
fn objects(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut all = Vec::new();
    for mut document in documents {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => all.extend(items),
            _ if document.is_object() => all.push(document),
            _ => {}
        }
    }
    Ok(all)
}

/// Reads the pods: manifests or a trace.
pub fn pods(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let first = text.lines().find(|line| !line.trim().is_empty());
    let is_trace =
        first.is_some_and(|line| line.split(',').any(|column| column.trim() == "arrival"));
    let pods = if is_trace {
        trace(text, config)?
    } else {
        manifests(text, config)?
    };
    if pods.is_empty() {
        bail!("no pod asks for {}", config.resource_names().join(" or "));
    }
    Ok(pods)
}

fn manifests(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let mut pods = Vec::new();
    for object in objects(text)? {
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or("pod")
            .to_owned();
        let spec = &object["spec"];
        let template = match object["kind"].as_str() {
            Some("Pod") => object.clone(),
            Some("CronJob") => spec["jobTemplate"]["spec"]["template"].clone(),
            _ => spec["template"].clone(),
        };
        if template.is_null() {
            continue;
        }
        let replicas = ["replicas", "parallelism"]
            .iter()
            .find_map(|field| spec[*field].as_u64());
        let pod: Pod = serde_json::from_value(template)
            .with_context(|| format!("the pod of {name:?} is not readable"))?;
        let demand = Demand::read(&daemon::pods::request(&pod), config)
            .with_context(|| format!("the pod of {name:?} is refused"))?;
        let Some(demand) = demand else { continue };
        for replica in 0..replicas.unwrap_or(1) {
            pods.push(SimulatedPod {
                name: match replicas {
                    None => name.clone(),
                    Some(_) => format!("{name}-{replica}"),
                },
                demand: demand.clone(),
                arrival: 0.0,
                lifetime: None,
            });
        }
    }
    Ok(pods)
}

fn trace(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let [count, mib, percent, cores] = config.resource_names().map(str::to_owned);
    let columns = BTreeMap::from([
        ("gpu".to_owned(), count.clone()),
        ("gpumem".to_owned(), mib),
        ("gpumem-percentage".to_owned(), percent),
        ("gpucores".to_owned(), cores),
    ]);
    let known = |column: &str| {
        ["arrival", "lifetime", "name"].contains(&column)
            || columns
                .iter()
                .any(|(short, long)| short == column || long == column)
    };
    let headers = reader.headers()?.clone();
    if let Some(unknown) = headers.iter().find(|column| !known(column)) {
        bail!(
            "column {unknown:?} is unknown; write arrival, lifetime, name, gpu, gpumem, gpumem-percentage or gpucores"
        );
    }
    let mut pods = Vec::new();
    for (number, row) in reader.deserialize::<BTreeMap<String, String>>().enumerate() {
        let line = number + 2;
        let row = row.with_context(|| format!("line {line}"))?;
        let seconds = |column: &str| -> anyhow::Result<Option<f64>> {
            let Some(text) = row.get(column).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let seconds: Option<f64> = text.parse().ok();
            match seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
                Some(seconds) => Ok(Some(seconds)),
                None => {
                    bail!("line {line}: {column} {text:?} is no time; write seconds, such as 12.5")
                }
            }
        };
        let asked = row.iter().filter(|(_, text)| !text.is_empty());
        let resources = asked.filter_map(|(column, text)| {
            let name = columns.get(column).unwrap_or(column);
            let is_resource = columns.values().any(|long| long == name);
            is_resource.then(|| (name.clone(), text.clone()))
        });
        let mut resources: BTreeMap<String, String> = resources.collect();
        resources
            .entry(count.clone())
            .or_insert_with(|| "1".to_owned());
        let request = PodRequest {
            annotations: BTreeMap::new(),
            containers: vec![ContainerRequest {
                name: "main".to_owned(),
                kind: ContainerKind::App,
                resources,
            }],
        };
        let Some(demand) =
            Demand::read(&request, config).with_context(|| format!("line {line}"))?
        else {
            continue;
        };
        let name = row.get("name").filter(|name| !name.is_empty());
        pods.push(SimulatedPod {
            name: name
                .cloned()
                .unwrap_or_else(|| format!("pod-{}", number + 1)),
            demand,
            arrival: seconds("arrival")?.unwrap_or(0.0),
            lifetime: seconds("lifetime")?,
        });
    }
    pods.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    Ok(pods)
}

/// The index of a GPU on its node.
pub(crate) fn index(gpus: &[Gpu], uuid: &str) -> u32 {
    let found = gpus.iter().find(|gpu| gpu.uuid == uuid);
    found.map_or(0, |gpu| gpu.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_makes_nodes_of_eight() {
        let made = nodes("10 x a100-80gb, 1 x a30 hami-core", 8).unwrap();
        let sizes: Vec<_> = made
            .iter()
            .map(|(name, s)| (name.as_str(), s.gpus.len()))
            .collect();
        assert_eq!(
            sizes,
            [("a100-80gb-0", 8), ("a100-80gb-1", 2), ("a30-0", 1)]
        );
        assert_eq!(made[2].1.gpus[0].mode, VgpuMode::HamiCore);
    }

    #[test]
    fn a_slip_is_named() {
        let error = |text: &str| format!("{:#}", nodes(text, 8).unwrap_err());
        assert!(error("4 x a100").contains("a100-80gb"));
        assert!(error("four gpus").contains("100 x a100-80gb"));
        assert!(error("1 x a30 soft").contains("hami-core"));
        let error = |text: &str| format!("{:#}", pods(text, &Config::default()).unwrap_err());
        assert!(error("arrival,lifetime,memory\n0,1,2\n").contains("gpumem"));
        assert!(error("arrival,lifetime,gpumem\nsoon,1,2\n").contains("line 2"));
        assert!(error("arrival,lifetime,gpumem\n0,1,8Gi\n").contains("write 8192"));
        assert!(
            error("kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n")
                .contains("nvidia.com/gpu")
        );
    }

    #[test]
    fn manifests_and_traces_are_read() {
        let text = "
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  template:
    spec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 8000}}}]}
---
kind: Service
metadata: {name: web}
spec: {ports: []}
---
kind: Pod
metadata: {name: one}
spec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu: '2'}}}]}
";
        let read = pods(text, &Config::default()).unwrap();
        let names: Vec<_> = read.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["web-0", "web-1", "one"]);
        assert_eq!(read[2].demand.containers[0].count, 2);
        let read = pods(
            "name,arrival,lifetime,gpumem\nb,5,1,8000\na,1.5,,20000\n",
            &Config::default(),
        )
        .unwrap();
        assert_eq!((read[0].name.as_str(), read[0].lifetime), ("a", None));
        assert_eq!(read[1].lifetime, Some(1.0));
    }
}
