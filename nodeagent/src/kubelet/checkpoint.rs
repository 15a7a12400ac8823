//! kubelet's own record of device ids, `kubelet_internal_checkpoint`: the only one that names init containers.
//!
//! The format is kubelet's internal one (`pkg/kubelet/cm/devicemanager/checkpoint`), so it is read
//! for what `PodResources` cannot say, and its absence or another form is no error.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::kubelet::device_ids::{Holding, PodName};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    #[serde(default)]
    pod_device_entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ContainerName")]
    container_name: String,
    #[serde(rename = "ResourceName")]
    resource_name: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
}

/// The holdings of a resource; empty when the file is not there or of another form.
pub fn read(path: &Path, resource: &str) -> Vec<Holding> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, resource),
        Err(error) => {
            tracing::debug!(%error, "No kubelet checkpoint");
            vec![]
        }
    }
}

fn parse(bytes: &[u8], resource: &str) -> Vec<Holding> {
    let file: File = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(error) => {
            tracing::debug!(%error, "kubelet's checkpoint has another form");
            return vec![];
        }
    };
    file.data
        .pod_device_entries
        .unwrap_or_default()
        .into_iter()
        .filter(|entry| entry.resource_name == resource)
        .map(|entry| Holding {
            pod: PodName::Uid(entry.pod_uid),
            container: entry.container_name,
            ids: entry.device_ids.into_values().flatten().collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_form_is_read() {
        let text = br#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"i","ResourceName":"nvidia.com/gpu",
            "DeviceIDs":{"-1":["d7","d6"]},"AllocResp":"Eg=="},{"PodUID":"u","ContainerName":"x","ResourceName":"other/x",
            "DeviceIDs":{"0":["e"]},"AllocResp":""}],"RegisteredDevices":{"nvidia.com/gpu":["d6","d7"]}},"Checksum":1}"#;
        let holdings = parse(text, "nvidia.com/gpu");
        assert_eq!(holdings.len(), 1);
        assert_eq!(holdings[0].container, "i");
        assert_eq!(holdings[0].ids.iter().collect::<Vec<_>>(), ["d6", "d7"]);
    }

    #[test]
    fn no_file_and_other_forms_are_nothing() {
        assert_eq!(parse(b"junk", "x"), []);
        assert_eq!(
            parse(br#"{"Data":{"PodDeviceEntries":null},"Checksum":1}"#, "x"),
            []
        );
        assert_eq!(read(Path::new("/nonexistent"), "x"), []);
    }
}
