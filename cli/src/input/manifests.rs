//! Pods from the manifests of pods and of what creates pods.

use anyhow::Context;
use domain::{config::Config, demand::Demand};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{objects::objects, pod::SimulatedPod};

pub(super) fn manifests(text: &str, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let mut pods = Vec::new();
    for object in objects(text)? {
        pods.extend(pods_of(&object, config)?);
    }
    Ok(pods)
}

/// The pods of an object, as many as it has replicas; none where it creates no pods or they ask for no GPU.
fn pods_of(object: &Value, config: &Config) -> anyhow::Result<Vec<SimulatedPod>> {
    let name = object["metadata"]["name"].as_str().unwrap_or("pod");
    let spec = &object["spec"];
    let template = match object["kind"].as_str() {
        Some("Pod") => object,
        Some("CronJob") => &spec["jobTemplate"]["spec"]["template"],
        _ => &spec["template"],
    };
    if template.is_null() {
        return Ok(vec![]);
    }
    let pod: Pod = serde_json::from_value(template.clone())
        .with_context(|| format!("cannot read the pod of {name:?}"))?;
    let demand = Demand::read(&daemon::pods::request(&pod), config)
        .with_context(|| format!("pod of {name:?}"))?;
    let Some(demand) = demand else {
        return Ok(vec![]);
    };
    let pod = |name: String| SimulatedPod {
        name,
        demand: demand.clone(),
        arrival: 0.0,
        lifetime: None,
    };
    let replicas = ["replicas", "parallelism"]
        .iter()
        .find_map(|field| spec[*field].as_u64());
    Ok(match replicas {
        None => vec![pod(name.to_owned())],
        Some(replicas) => (0..replicas)
            .map(|replica| pod(format!("{name}-{replica}")))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read() {
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
        let read = manifests(text, &Config::default()).unwrap();
        let names: Vec<_> = read.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["web-0", "web-1", "one"]);
        assert_eq!(read[2].demand.containers[0].count, 2);
    }
}
