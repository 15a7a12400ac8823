//! What a container runtime does with CDI device names: looks them up in the specs of a directory.

use std::path::Path;

use serde_json::{Value, json};

/// A device that is in no spec, in containerd's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CDI device injection failed: unresolvable CDI devices {0}")]
pub(super) struct UnresolvableDevice(String);

/// What a container with these devices is created with.
pub(super) fn resolve(directory: &Path, names: &[String]) -> Result<Value, UnresolvableDevice> {
    let specs: Vec<Value> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "json")
        })
        .filter_map(|entry| serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok())
        .collect();
    let (mut env, mut nodes, mut mounts) = (serde_json::Map::new(), vec![], vec![]);
    for name in names {
        let found = name.split_once('=').and_then(|(kind, device)| {
            let spec = specs.iter().find(|spec| {
                spec["kind"] == kind && list(&spec["devices"]).any(|d| d["name"] == device)
            })?;
            let device = list(&spec["devices"]).find(|d| d["name"] == device)?;
            Some([&spec["containerEdits"], &device["containerEdits"]])
        });
        let Some(edits) = found else {
            return Err(UnresolvableDevice(name.clone()));
        };
        for edits in edits {
            for variable in list(&edits["env"]) {
                let (key, value) = variable
                    .as_str()
                    .and_then(|v| v.split_once('='))
                    .unwrap_or(("", ""));
                env.insert(key.to_owned(), value.into());
            }
            nodes.extend(list(&edits["deviceNodes"]).map(|node| node["path"].clone()));
            mounts.extend(list(&edits["mounts"]).map(|mount| mount["containerPath"].clone()));
        }
    }
    Ok(json!({ "devices": names, "env": env, "deviceNodes": nodes, "mounts": mounts }))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_an_unknown_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({ "kind": "a/b", "containerEdits": { "env": ["X=1"] },
            "devices": [{ "name": "d", "containerEdits": { "deviceNodes": [{ "path": "/dev/x" }] } }] });
        std::fs::write(dir.path().join("s.json"), spec.to_string()).unwrap();
        let found = resolve(dir.path(), &["a/b=d".to_owned()]).unwrap();
        assert_eq!(
            (&found["env"]["X"], &found["deviceNodes"][0]),
            (&"1".into(), &"/dev/x".into())
        );
        let error = resolve(dir.path(), &["a/b=e".to_owned()]).unwrap_err();
        assert_eq!(error, UnresolvableDevice("a/b=e".to_owned()));
    }
}
