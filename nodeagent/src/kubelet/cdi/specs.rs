//! The directory of our CDI specs: writes one per set of device ids, reads it back, removes it with its pod.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::kubelet::{
    cdi::{
        base_spec,
        driver::DriverProc,
        edits::{self, Edits},
        error::CdiError,
        names,
    },
    id_holders::{DeviceIds, PreparedContainer},
};

/// Key of the spec's annotation with the [`PreparedContainer`] that it was written for.
const CONTAINER_ANNOTATION: &str = "tessera.dev/for";

/// Where specs are written, and where their contents come from.
#[derive(Clone, Debug)]
pub(crate) struct CdiSpecs {
    /// Directory that the container runtime reads specs from.
    pub(crate) directory: PathBuf,
    pub(crate) driver: DriverProc,
    /// `/dev` of the host.
    pub(crate) dev: PathBuf,
    /// Candidates for the spec of NVIDIA's toolkit.
    pub(crate) base_specs: Vec<PathBuf>,
    /// Directory of `HAMi`-core on the host (`HOOK_PATH`).
    pub(crate) hook: PathBuf,
}

/// What a spec was written for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrittenSpec {
    pub(crate) container: PreparedContainer,
    /// UUIDs of the devices.
    pub(crate) devices: Vec<String>,
}

impl CdiSpecs {
    /// Writes the spec of a set of ids, in the place of an earlier one.
    pub(crate) fn write(
        &self,
        ids: &DeviceIds,
        container: &PreparedContainer,
        edits: Edits,
    ) -> Result<(), CdiError> {
        for node in &edits.nodes {
            node.create_in(&self.dev);
        }
        let device = names::device(ids);
        let edits = edits.append_to(base_spec::common_edits(&self.base_specs));
        let spec = json!({
            "cdiVersion": "0.6.0",
            "kind": names::KIND,
            // Annotations are strings.
            "annotations": { CONTAINER_ANNOTATION: json!(container).to_string() },
            "devices": [{ "name": device, "containerEdits": edits }],
        });
        let path = self.path(&device);
        replace_file(&self.directory, &path, &spec.to_string())
            .map_err(|source| CdiError::Write { path, source })
    }

    /// Reads what the spec of these ids was written for.
    pub(crate) fn read(&self, ids: &DeviceIds) -> Option<WrittenSpec> {
        let spec = read_json(&self.path(&names::device(ids)))?;
        Some(WrittenSpec {
            container: container_of(&spec)?,
            devices: edits::device_uuids(&spec["devices"][0]["containerEdits"]),
        })
    }

    /// Removes the specs of pods that are over.
    pub(crate) fn retain(&self, is_alive: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_name().to_str().is_some_and(names::is_our_file) {
                continue;
            }
            let path = entry.path();
            let container = read_json(&path).and_then(|spec| container_of(&spec));
            if container.is_none_or(|container| !is_alive(&container.uid))
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(%error, path = %path.display(), "Cannot remove a CDI spec");
            }
        }
    }

    fn path(&self, device: &str) -> PathBuf {
        self.directory.join(names::file(device))
    }
}

/// Writes a file of which a reader sees the old or the new content, never a part.
fn replace_file(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".tessera")
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn container_of(spec: &Value) -> Option<PreparedContainer> {
    serde_json::from_str(spec["annotations"][CONTAINER_ANNOTATION].as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use domain::claim::Share;

    use super::*;
    use crate::{
        gpus::inventory::LiveDevice,
        kubelet::cdi::{mig, share},
    };

    fn world() -> (tempfile::TempDir, CdiSpecs) {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "proc/devices",
            "Character devices:\n195 nvidia\n508 nvidia-caps\n\nBlock devices:\n508 x\n",
        );
        write(
            "proc/driver/nvidia/capabilities/gpu2/mig/gi13/access",
            "DeviceFileMinor: 120\nDeviceFileMode: 292\n",
        );
        write(
            "proc/driver/nvidia/capabilities/gpu2/mig/gi13/ci0/access",
            "DeviceFileMinor: 121\n",
        );
        write(
            "nvidia.yaml",
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env: [A=b]\n  hooks: [{hookName: createContainer, path: /x}]\ndevices: []\n",
        );
        let specs = CdiSpecs {
            directory: dir.path().join("cdi"),
            driver: DriverProc(dir.path().join("proc")),
            dev: dir.path().join("dev"),
            base_specs: vec![dir.path().join("none.yaml"), dir.path().join("nvidia.yaml")],
            hook: dir.path().join("hook"),
        };
        (dir, specs)
    }

    fn container() -> PreparedContainer {
        PreparedContainer {
            uid: "u".into(),
            container: "c".into(),
            fingerprint: "f".into(),
        }
    }

    fn device() -> LiveDevice {
        LiveDevice {
            gpu: "GPU-1".into(),
            minor: 2,
            gpu_instance: 13,
            compute_instance: 0,
            uuid: "MIG-1".into(),
            profile: "1g.10gb".into(),
            memory_mib: 9_728,
        }
    }

    fn ids(list: &[&str]) -> DeviceIds {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    fn written_edits(specs: &CdiSpecs, ids: &DeviceIds) -> Value {
        let device = names::device(ids);
        let spec = read_json(&specs.path(&device)).unwrap();
        assert_eq!(spec["kind"], names::KIND);
        assert_eq!(spec["devices"][0]["name"], device);
        spec["devices"][0]["containerEdits"].clone()
    }

    fn env(edits: &Value) -> Vec<&str> {
        let env = edits["env"].as_array().unwrap().iter();
        env.filter_map(Value::as_str).collect()
    }

    #[test]
    fn a_mig_container_gets_its_gpu_its_two_capabilities_and_the_drivers_common_edits() {
        let (_dir, specs) = world();
        let ids = ids(&["b", "a"]);
        // A second device on the same GPU adds no node twice.
        let second = LiveDevice {
            uuid: "MIG-2".into(),
            ..device()
        };
        let edits = mig::edits(&specs.driver, &[device(), second]).unwrap();
        specs.write(&ids, &container(), edits).unwrap();
        let edits = written_edits(&specs, &ids);
        let nodes = edits["deviceNodes"].as_array().unwrap().iter();
        let nodes: Vec<_> = nodes
            .map(|node| {
                (
                    node["path"].as_str().unwrap(),
                    node["major"].as_u64().unwrap(),
                    node["minor"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            nodes,
            [
                ("/dev/nvidiactl", 195, 255),
                ("/dev/nvidia2", 195, 2),
                ("/dev/nvidia-caps/nvidia-cap120", 508, 120),
                ("/dev/nvidia-caps/nvidia-cap121", 508, 121),
            ]
        );
        assert_eq!(
            env(&edits),
            [
                "A=b",
                "NVIDIA_VISIBLE_DEVICES=void",
                "TESSERA_DEVICES=MIG-1,MIG-2"
            ]
        );
        assert_eq!(edits["hooks"][0]["path"], "/x");
        assert!(edits.get("mounts").is_none(), "no empty lists");
    }

    /// It is an error, not a container without its device.
    #[test]
    fn a_capability_that_the_driver_does_not_publish_is_an_error() {
        let (_dir, specs) = world();
        let wrong = LiveDevice {
            gpu_instance: 9,
            ..device()
        };
        let error = mig::edits(&specs.driver, &[wrong]).unwrap_err().to_string();
        assert!(error.contains("gi9/access does not contain"), "{error}");
    }

    #[test]
    fn a_spec_is_read_back_and_goes_with_its_pod() {
        let (_dir, specs) = world();
        let ids = ids(&["a"]);
        let edits = mig::edits(&specs.driver, &[device()]).unwrap();
        specs.write(&ids, &container(), edits).unwrap();
        let written = WrittenSpec {
            container: container(),
            devices: vec!["MIG-1".to_owned()],
        };
        assert_eq!(specs.read(&ids), Some(written));
        specs.retain(|uid| uid == "u");
        assert!(specs.read(&ids).is_some());
        specs.retain(|_| false);
        assert!(specs.read(&ids).is_none());
    }

    /// Agents before this one wrote the annotation in this format.
    #[test]
    fn the_annotation_of_a_spec_keeps_its_format() {
        let text = r#"{"uid":"u","container":"c","fingerprint":"f"}"#;
        assert_eq!(json!(container()).to_string().len(), text.len());
        let spec = json!({ "annotations": { "tessera.dev/for": text } });
        assert_eq!(container_of(&spec), Some(container()));
    }

    fn share_edits(specs: &CdiSpecs, limiter: share::Limiter) -> Value {
        for file in ["libvgpu.so", "ld.so.preload"] {
            std::fs::create_dir_all(specs.hook.join("vgpu")).unwrap();
            std::fs::write(specs.hook.join("vgpu").join(file), "").unwrap();
        }
        let share = Share {
            gpu: "GPU-1".into(),
            mem: 8_000,
            cores: 30,
        };
        let ids = ids(&["a"]);
        let shares = [(&share, 0)];
        let edits = share::edits(&specs.driver, &specs.hook, &container(), &shares, limiter);
        specs.write(&ids, &container(), edits.unwrap()).unwrap();
        assert_eq!(specs.read(&ids).unwrap().devices, ["GPU-1"]);
        written_edits(specs, &ids)
    }

    fn mounted(edits: &Value) -> Vec<&str> {
        let mounts = edits["mounts"].as_array().unwrap().iter();
        mounts
            .filter_map(|mount| mount["containerPath"].as_str())
            .collect()
    }

    #[test]
    fn a_share_gets_what_hami_core_expects() {
        let (_dir, specs) = world();
        let edits = share_edits(&specs, share::Limiter::Preloaded);
        assert!(env(&edits).contains(&"CUDA_DEVICE_MEMORY_LIMIT_0=8000m"));
        assert!(env(&edits).contains(&"CUDA_DEVICE_SM_LIMIT=30"));
        let vgpu = specs.hook.join("vgpu").display().to_string();
        let library = format!("{vgpu}/libvgpu.so");
        let cache = format!("CUDA_DEVICE_MEMORY_SHARED_CACHE={vgpu}/u.cache");
        assert!(env(&edits).contains(&cache.as_str()));
        assert_eq!(
            mounted(&edits),
            [
                vgpu.as_str(),
                "/tmp/vgpulock",
                &library,
                "/etc/ld.so.preload"
            ]
        );
        let disabled = share_edits(&specs, share::Limiter::Disabled);
        assert_eq!(
            mounted(&disabled),
            [vgpu.as_str(), "/tmp/vgpulock", &library]
        );
    }

    /// Issue 12: the container's own directory fits any user, is bounded, and leaves nothing on the host; all containers
    /// share one directory for the lock.
    #[test]
    fn the_directories_of_a_share_fit_a_user_who_is_not_root() {
        use std::os::unix::fs::PermissionsExt;

        let (_dir, specs) = world();
        let edits = share_edits(&specs, share::Limiter::Preloaded);
        let own = &edits["mounts"][0];
        assert_eq!(own["type"], "tmpfs");
        let options = own["options"].as_array().unwrap();
        for option in ["rw", "mode=1777", "size=64m"] {
            assert!(options.iter().any(|known| known == option), "{options:?}");
        }
        let lock = specs.hook.join("vgpu/lock");
        assert_eq!(edits["mounts"][1]["hostPath"], lock.display().to_string());
        let mode = std::fs::metadata(lock).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
        let left = std::fs::read_dir(specs.hook.join("vgpu")).unwrap().count();
        assert_eq!(
            left, 3,
            "nothing of the container: the library, its list, the lock"
        );
    }
}
