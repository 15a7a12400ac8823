//! kubelet's own record of device ids, `kubelet_internal_checkpoint`: the only one that names init containers.
//!
//! The format is internal to kubelet (`pkg/kubelet/cm/devicemanager/checkpoint`). The file is read for what
//! `PodResources` does not report, and a file that is missing or has another format is no error.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::kubelet::id_holders::{IdHolder, PodRef};

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

/// The containers that hold ids of a resource. Empty if the file is missing or has another format.
pub(crate) fn read(path: &Path, resource: &str) -> Vec<IdHolder> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, resource),
        Err(error) => {
            tracing::debug!(%error, "Cannot read kubelet's checkpoint");
            vec![]
        }
    }
}

fn parse(bytes: &[u8], resource: &str) -> Vec<IdHolder> {
    let file: File = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(error) => {
            tracing::debug!(%error, "kubelet's checkpoint has an unknown format");
            return vec![];
        }
    };
    file.data
        .pod_device_entries
        .unwrap_or_default()
        .into_iter()
        .filter(|entry| entry.resource_name == resource)
        .map(|entry| IdHolder {
            pod: PodRef::Uid(entry.pod_uid),
            container: entry.container_name,
            ids: entry.device_ids.into_values().flatten().collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_format_is_read() {
        let text = br#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"i","ResourceName":"nvidia.com/gpu",
            "DeviceIDs":{"-1":["d7","d6"]},"AllocResp":"Eg=="},{"PodUID":"u","ContainerName":"x","ResourceName":"other/x",
            "DeviceIDs":{"0":["e"]},"AllocResp":""}],"RegisteredDevices":{"nvidia.com/gpu":["d6","d7"]}},"Checksum":1}"#;
        let holders = parse(text, "nvidia.com/gpu");
        assert_eq!(holders.len(), 1);
        assert_eq!(holders[0].container, "i");
        assert_eq!(holders[0].ids.iter().collect::<Vec<_>>(), ["d6", "d7"]);
    }

    #[test]
    fn a_missing_file_and_other_formats_name_no_holders() {
        assert_eq!(parse(b"junk", "x"), []);
        assert_eq!(
            parse(br#"{"Data":{"PodDeviceEntries":null},"Checksum":1}"#, "x"),
            []
        );
        assert_eq!(read(Path::new("/nonexistent"), "x"), []);
    }
}
