//! Reads the pods, from manifests or a trace.

use anyhow::bail;
use domain::config::Config;

use super::{manifests::manifests, pod::SimulatedPod, trace::trace};

/// Reads the pods: a trace where the first line names the column `arrival`, manifests otherwise.
pub fn read(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_ask_for_no_gpu_are_refused() {
        let text = "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n";
        let error = read(text, &Config::default()).unwrap_err();
        assert!(error.to_string().contains("nvidia.com/gpu"), "{error}");
    }
}
