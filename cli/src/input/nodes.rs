//! Reads the nodes, from `GpuNode`s or a list.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use domain::{fixtures, mode::VgpuMode, status::GpuNodeStatus};

use super::objects::objects;

/// A node's name and status.
pub type Node = (String, GpuNodeStatus);

/// Reads the nodes: a file with `GpuNode`s or a list, or the list itself.
pub fn read(text: &str, gpus_per_node: u32) -> anyhow::Result<Vec<Node>> {
    let path = Path::new(text);
    let nodes = if path.is_file() {
        let content = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        match list(&content, gpus_per_node) {
            Some(nodes) => nodes,
            None => gpu_nodes(&content),
        }
        .with_context(|| format!("cannot use the nodes of {}", path.display()))?
    } else {
        list(text, gpus_per_node).unwrap_or_else(|| {
            Err(anyhow!(
                "{text:?} is neither a file nor a list of GPUs; write \"100 x a100-80gb\""
            ))
        })?
    };
    if nodes.is_empty() {
        bail!("there are no nodes with GPUs");
    }
    Ok(nodes)
}

/// A part of a list: `8 x a30 hami-core`.
struct Part {
    count: u32,
    model: String,
    mode: Option<String>,
}

/// `100 x a100-80gb, 8 x a30 hami-core`, one part per line or separated by commas; `None` where that is something else.
fn list(text: &str, gpus_per_node: u32) -> Option<anyhow::Result<Vec<Node>>> {
    let parts = text.split([',', '\n']).map(str::trim);
    let parts = parts.filter(|part| !part.is_empty()).map(Part::read);
    let parts: Vec<Part> = parts.collect::<Option<_>>()?;
    if parts.is_empty() {
        return None;
    }
    let nodes = parts.iter().map(|part| part.nodes(gpus_per_node));
    let nodes: anyhow::Result<Vec<_>> = nodes.collect();
    Some(nodes.map(|nodes| nodes.into_iter().flatten().collect()))
}

impl Part {
    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (count, model, mode) = match words[..] {
            [count, "x", model] => (count, model, None),
            [count, "x", model, mode] => (count, model, Some(mode)),
            _ => return None,
        };
        Some(Self {
            count: count.parse().ok()?,
            model: model.to_owned(),
            mode: mode.map(str::to_owned),
        })
    }

    fn nodes(&self, gpus_per_node: u32) -> anyhow::Result<Vec<Node>> {
        let key = &self.model;
        let model = fixtures::model(key).ok_or_else(|| {
            let known = fixtures::model_keys().join(", ");
            anyhow!("model {key:?} is unknown; write one of: {known}")
        })?;
        let mode = self.mode.as_deref().map(str::parse::<VgpuMode>);
        let mode = mode.transpose()?.unwrap_or(VgpuMode::Mig);
        let nodes = (0..self.count.div_ceil(gpus_per_node)).map(|node| {
            let name = format!("{key}-{node}");
            let gpus = gpus_per_node.min(self.count - node * gpus_per_node);
            let status = fixtures::node(&name, &model, gpus, mode);
            (name, status)
        });
        Ok(nodes.collect())
    }
}

/// The output of `kubectl get gpunodes -o yaml`, or one of them.
fn gpu_nodes(text: &str) -> anyhow::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for object in objects(text)? {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if kind != "GpuNode" {
            bail!(
                "found an object of kind {kind:?}; write the output of `kubectl get gpunodes -o yaml`"
            );
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let status: GpuNodeStatus = serde_json::from_value(object["status"].clone())
            .with_context(|| format!("cannot read the status of gpunode {name:?}"))?;
        nodes.push((name.to_owned(), status));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_makes_nodes_of_eight() {
        let made = read("10 x a100-80gb, 1 x a30 hami-core", 8).unwrap();
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
    fn the_output_of_kubectl_is_read() {
        let status = fixtures::node("n", &fixtures::a30(), 2, VgpuMode::Mig);
        let list = serde_json::json!({ "kind": "List", "items": [
            { "kind": "GpuNode", "metadata": { "name": "n" }, "status": status }] });
        assert_eq!(
            gpu_nodes(&list.to_string()).unwrap(),
            [("n".to_owned(), status)]
        );
        let error = gpu_nodes("kind: Node\n").unwrap_err().to_string();
        assert!(error.contains("kubectl get gpunodes"), "{error}");
    }

    #[test]
    fn an_error_shows_the_way_to_write_it() {
        let error = |text: &str| format!("{:#}", read(text, 8).unwrap_err());
        assert!(error("4 x a100").contains("a100-80gb"));
        assert!(error("four gpus").contains("100 x a100-80gb"));
        assert!(error("1 x a30 soft").contains("hami-core"));
    }
}
