//! CDI specs: what a container gets, written just before kubelet creates it (Container Device Interface 0.6).
//!
//! A container process needs its card's node and the two capability nodes of its instance (MIG user
//! guide, "Device nodes and capabilities"). Major and minor are named in the spec, and the nodes are made in `/dev` of
//! the host where they are missing: nobody else does, and a container in a user namespace gets them from there by bind
//! mount. The driver's libraries come from the spec that NVIDIA's toolkit has
//! generated: its edits that are common to all devices are taken over.

use std::{
    fs::Permissions,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use domain::claim::Share;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    gpus::inventory::LiveDevice,
    kubelet::device_ids::{DeviceIds, Served},
};

/// Vendor and class of our devices.
pub const KIND: &str = "tessera.dev/gpu";
/// Key of the spec's annotation that tells whom it was written for.
const FOR: &str = "tessera.dev/for";
/// Variable of the container that names the UUIDs of its devices.
const DEVICES: &str = "TESSERA_DEVICES";
/// Major number of NVIDIA's cards (`Documentation/admin-guide/devices.txt`).
const NVIDIA_MAJOR: u32 = 195;
/// Minor number of `/dev/nvidiactl`.
const CONTROL_MINOR: u32 = 255;

/// Where specs are written and where facts for them are read.
#[derive(Clone, Debug)]
pub struct Cdi {
    /// Directory that the runtime reads specs from.
    pub directory: PathBuf,
    /// `/proc`, or where the driver's part of it is.
    pub proc: PathBuf,
    /// `/dev` of the host.
    pub dev: PathBuf,
    /// Specs of NVIDIA's toolkit; the first that exists gives the common edits.
    pub base: Vec<PathBuf>,
    /// Directory of `HAMi`-core on the host (`HOOK_PATH`).
    pub hook: PathBuf,
}

/// A device node of a container, as a spec names it.
#[derive(Debug, Serialize)]
struct DeviceNode {
    path: String,
    #[serde(rename = "type")]
    kind: char,
    major: u32,
    minor: u32,
    permissions: &'static str,
}

/// For whom a spec was written.
#[derive(Serialize, Deserialize)]
struct For {
    uid: String,
    container: String,
    fingerprint: String,
}

/// A spec that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A fact of the driver is not where it should be.
    #[error("{path} does not tell {what}")]
    Fact {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// The directory cannot be written.
    #[error("cannot write the CDI spec {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The name of the device for a set of ids: a digest, the same for any order of the ids.
pub fn name(ids: &DeviceIds) -> String {
    let mut digest = Sha256::new();
    for id in ids {
        digest.update(id);
        digest.update([0]);
    }
    digest
        .finalize()
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The name by which kubelet hands the device to the runtime.
pub fn qualified(ids: &DeviceIds) -> String {
    format!("{KIND}={}", name(ids))
}

impl Cdi {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("tessera.dev-gpu-{name}.json"))
    }

    /// For whom the spec of these ids was written last.
    pub fn served(&self, ids: &DeviceIds) -> Option<Served> {
        self.served_devices(ids).map(|(served, _)| served)
    }

    /// For whom the spec of these ids was written last, and the UUIDs of the devices in it.
    pub fn served_devices(&self, ids: &DeviceIds) -> Option<(Served, Vec<String>)> {
        let bytes = std::fs::read(self.path(&name(ids))).ok()?;
        let spec: Value = serde_json::from_slice(&bytes).ok()?;
        let text = spec["annotations"][FOR].as_str()?;
        let known: For = serde_json::from_str(text).ok()?;
        let env = spec["devices"][0]["containerEdits"]["env"].as_array();
        let mut env = env.into_iter().flatten().filter_map(Value::as_str);
        let uuids = env.find_map(|line| line.strip_prefix(DEVICES)?.strip_prefix('='));
        let uuids = uuids.unwrap_or_default().split(',').map(str::to_owned);
        let served = Served {
            uid: known.uid,
            container: known.container,
            fingerprint: known.fingerprint,
        };
        Some((served, uuids.collect()))
    }

    /// Writes the spec of a container with MIG devices.
    pub fn write_mig(
        &self,
        ids: &DeviceIds,
        of: &Served,
        devices: &[LiveDevice],
    ) -> Result<(), CdiError> {
        let caps = major(&self.proc, "nvidia-caps")?;
        let mut nodes = vec![node("/dev/nvidiactl", NVIDIA_MAJOR, CONTROL_MINOR)];
        for device in devices {
            let access = |rest: String| {
                let path = format!(
                    "driver/nvidia/capabilities/gpu{}/mig/{rest}/access",
                    device.minor
                );
                self.cap_minor(&path)
            };
            let (gi, ci) = (device.gpu_instance, device.compute_instance);
            nodes.push(node(
                &format!("/dev/nvidia{}", device.minor),
                NVIDIA_MAJOR,
                device.minor,
            ));
            for minor in [
                access(format!("gi{gi}"))?,
                access(format!("gi{gi}/ci{ci}"))?,
            ] {
                nodes.push(node(
                    &format!("/dev/nvidia-caps/nvidia-cap{minor}"),
                    caps,
                    minor,
                ));
            }
        }
        nodes.extend(self.uvm_nodes());
        // Two instances of one card name the same node.
        let mut named = std::collections::BTreeSet::new();
        nodes.retain(|node| named.insert(node.path.clone()));
        let uuids: Vec<_> = devices.iter().map(|device| device.uuid.as_str()).collect();
        // The devices are injected by this spec: NVIDIA's runtime must not add any by the variable.
        let env = vec![
            "NVIDIA_VISIBLE_DEVICES=void".to_owned(),
            format!("{DEVICES}={}", uuids.join(",")),
        ];
        self.write(ids, of, &nodes, env, vec![])
    }

    /// Writes the spec of a container with software shares: `HAMi`-core's environment and mounts.
    pub fn write_shares(
        &self,
        ids: &DeviceIds,
        of: &Served,
        shares: &[(Share, u32)],
    ) -> Result<(), CdiError> {
        let hook = self.hook.display();
        let mut nodes = vec![node("/dev/nvidiactl", NVIDIA_MAJOR, CONTROL_MINOR)];
        let mut env = vec![
            "NVIDIA_VISIBLE_DEVICES=void".to_owned(),
            format!(
                "CUDA_DEVICE_MEMORY_SHARED_CACHE={hook}/vgpu/{}.cache",
                of.uid
            ),
        ];
        for (index, (share, minor)) in shares.iter().enumerate() {
            nodes.push(node(&format!("/dev/nvidia{minor}"), NVIDIA_MAJOR, *minor));
            env.push(format!("CUDA_DEVICE_MEMORY_LIMIT_{index}={}m", share.mem));
        }
        if let Some((share, _)) = shares.first() {
            env.push(format!("CUDA_DEVICE_SM_LIMIT={}", share.cores));
        }
        let uuids: Vec<_> = shares.iter().map(|(share, _)| share.gpu.as_str()).collect();
        env.push(format!("{DEVICES}={}", uuids.join(",")));
        nodes.extend(self.uvm_nodes());
        let own = self
            .hook
            .join("vgpu/containers")
            .join(format!("{}_{}", of.uid, of.container));
        std::fs::create_dir_all(&own).map_err(|source| CdiError::Write {
            path: own.clone(),
            source,
        })?;
        let mut mounts = vec![mount(&own, &format!("{hook}/vgpu"), "rw")];
        // The library and its preload line are installed by HAMi; without them there is nothing to mount.
        for (host, container) in [
            (
                self.hook.join("vgpu/libvgpu.so"),
                format!("{hook}/vgpu/libvgpu.so"),
            ),
            (
                self.hook.join("vgpu/ld.so.preload"),
                "/etc/ld.so.preload".to_owned(),
            ),
        ] {
            if host.exists() {
                mounts.push(mount(&host, &container, "ro"));
            }
        }
        self.write(ids, of, &nodes, env, mounts)
    }

    fn write(
        &self,
        ids: &DeviceIds,
        of: &Served,
        nodes: &[DeviceNode],
        env: Vec<String>,
        mounts: Vec<Value>,
    ) -> Result<(), CdiError> {
        for node in nodes {
            self.make_node(node);
        }
        let mut edits = self.common_edits();
        for (key, values) in [
            (
                "deviceNodes",
                nodes.iter().map(|node| json!(node)).collect(),
            ),
            ("env", env.into_iter().map(Value::from).collect()),
            ("mounts", mounts),
        ] {
            let entry = edits.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = entry.as_array_mut() {
                list.extend(values);
            }
        }
        edits.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
        let name = name(ids);
        let whom = serde_json::to_string(&For {
            uid: of.uid.clone(),
            container: of.container.clone(),
            fingerprint: of.fingerprint.clone(),
        })
        .unwrap_or_default();
        let spec = json!({
            "cdiVersion": "0.6.0",
            "kind": KIND,
            "annotations": { FOR: whom },
            "devices": [{ "name": name, "containerEdits": edits }],
        });
        let path = self.path(&name);
        let written = std::fs::create_dir_all(&self.directory).and_then(|()| {
            let mut file = tempfile::Builder::new()
                .prefix(".tessera")
                .tempfile_in(&self.directory)?;
            file.write_all(spec.to_string().as_bytes())?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        });
        written.map_err(|source| CdiError::Write { path, source })
    }

    /// Removes the specs of pods that are over.
    pub fn clean(&self, lives: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let ours = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("tessera.dev-gpu-"));
            if !ours {
                continue;
            }
            let whom = std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
                .and_then(|spec| {
                    serde_json::from_str::<For>(spec["annotations"][FOR].as_str()?).ok()
                });
            if whom.is_none_or(|whom| !lives(&whom.uid))
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(%error, path = %path.display(), "Cannot remove a CDI spec");
            }
        }
    }

    /// The edits of NVIDIA's own spec that hold for every device: libraries, hooks, control nodes.
    fn common_edits(&self) -> Map<String, Value> {
        self.base
            .iter()
            .find_map(|path| {
                let text = std::fs::read_to_string(path).ok()?;
                match serde_saphyr::from_str::<Value>(&text) {
                    Ok(spec) => spec.get("containerEdits")?.as_object().cloned(),
                    Err(error) => {
                        tracing::warn!(%error, path = %path.display(), "Skipped an unreadable CDI spec");
                        None
                    }
                }
            })
            .unwrap_or_default()
    }

    /// Makes a device node of the host where it is missing or of another device. Where that cannot be done the numbers
    /// in the spec have to do.
    fn make_node(&self, node: &DeviceNode) {
        use std::os::unix::fs::MetadataExt;
        let Some(path) = node.path.strip_prefix("/dev/") else {
            return;
        };
        let (major, minor) = (node.major, node.minor);
        let path = self.dev.join(path);
        let device = makedev(major.into(), minor.into());
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.rdev() == device => return,
            // The major number of the capabilities may be another after the driver was loaded anew.
            Ok(_) => drop(std::fs::remove_file(&path)),
            Err(_) => {}
        }
        // The driver opens a capability for everybody who has its node: it is the container that has it or not.
        let mode = if path.parent() == Some(&self.dev) {
            0o666
        } else {
            0o444
        };
        let result = std::fs::create_dir_all(path.parent().unwrap_or(&self.dev))
            .and_then(|()| {
                mknod(&path, SFlag::S_IFCHR, Mode::empty(), device).map_err(io::Error::from)
            })
            // Whatever our umask is.
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(mode)));
        match result {
            Ok(()) => tracing::info!(path = %path.display(), major, minor, "Made a device node"),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "Cannot make a device node");
            }
        }
    }

    fn cap_minor(&self, path: &str) -> Result<u32, CdiError> {
        let path = self.proc.join(path);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
            .ok_or(CdiError::Fact {
                path,
                what: "the minor number of a capability".to_owned(),
            })
    }

    fn uvm_nodes(&self) -> Vec<DeviceNode> {
        let Ok(uvm) = major(&self.proc, "nvidia-uvm") else {
            return vec![];
        };
        vec![
            node("/dev/nvidia-uvm", uvm, 0),
            node("/dev/nvidia-uvm-tools", uvm, 1),
        ]
    }
}

/// The major number of a character device, from `/proc/devices`.
fn major(proc: &Path, driver: &str) -> Result<u32, CdiError> {
    let path = proc.join("devices");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.lines()
        .take_while(|line| !line.starts_with("Block"))
        .find_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            (name == driver).then(|| major.parse().ok()).flatten()
        })
        .ok_or(CdiError::Fact {
            path,
            what: format!("the major number of {driver}"),
        })
}

fn node(path: &str, major: u32, minor: u32) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        kind: 'c',
        major,
        minor,
        permissions: "rw",
    }
}

fn mount(host: &Path, container: &str, mode: &str) -> Value {
    json!({ "hostPath": host, "containerPath": container, "options": [mode, "nosuid", "nodev", "bind"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (tempfile::TempDir, Cdi) {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        at(
            "proc/devices",
            "Character devices:\n195 nvidia\n508 nvidia-caps\n\nBlock devices:\n508 x\n",
        );
        at(
            "proc/driver/nvidia/capabilities/gpu2/mig/gi13/access",
            "DeviceFileMinor: 120\nDeviceFileMode: 292\n",
        );
        at(
            "proc/driver/nvidia/capabilities/gpu2/mig/gi13/ci0/access",
            "DeviceFileMinor: 121\n",
        );
        at(
            "nvidia.yaml",
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env: [A=b]\n  hooks: [{hookName: createContainer, path: /x}]\ndevices: []\n",
        );
        let cdi = Cdi {
            directory: dir.path().join("cdi"),
            proc: dir.path().join("proc"),
            dev: dir.path().join("dev"),
            base: vec![dir.path().join("none.yaml"), dir.path().join("nvidia.yaml")],
            hook: dir.path().join("hook"),
        };
        (dir, cdi)
    }

    fn of() -> Served {
        Served {
            uid: "u".into(),
            container: "c".into(),
            fingerprint: "f".into(),
        }
    }

    fn ids(list: &[&str]) -> DeviceIds {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    fn edits(cdi: &Cdi, set: &DeviceIds) -> Value {
        let spec: Value =
            serde_json::from_slice(&std::fs::read(cdi.path(&name(set))).unwrap()).unwrap();
        assert_eq!(
            format!(
                "{}={}",
                spec["kind"].as_str().unwrap(),
                spec["devices"][0]["name"].as_str().unwrap()
            ),
            qualified(set)
        );
        spec["devices"][0]["containerEdits"].clone()
    }

    #[test]
    fn a_mig_container_gets_its_card_its_two_capabilities_and_the_drivers_common_edits() {
        let (_dir, cdi) = world();
        let device = LiveDevice {
            gpu: "GPU-1".into(),
            minor: 2,
            gpu_instance: 13,
            compute_instance: 0,
            uuid: "MIG-1".into(),
            profile: "1g.10gb".into(),
            memory_mib: 9_728,
        };
        let set = ids(&["b", "a"]);
        let second = LiveDevice {
            uuid: "MIG-2".into(),
            ..device.clone()
        };
        // A second device on the same card adds no node twice.
        cdi.write_mig(&set, &of(), &[device.clone(), second])
            .unwrap();
        let edits = edits(&cdi, &set);
        let nodes: Vec<_> = edits["deviceNodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| {
                (
                    n["path"].as_str().unwrap(),
                    n["major"].as_u64().unwrap(),
                    n["minor"].as_u64().unwrap(),
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
        assert_eq!(edits["env"][0], "A=b");
        assert!(
            edits["env"]
                .as_array()
                .unwrap()
                .contains(&"TESSERA_DEVICES=MIG-1,MIG-2".into())
        );
        assert_eq!(edits["hooks"][0]["path"], "/x");
        let uuids = vec!["MIG-1".to_owned(), "MIG-2".to_owned()];
        assert_eq!(cdi.served_devices(&set), Some((of(), uuids)));
        // A capability that the driver does not show is an error, not a container without its device.
        let wrong = LiveDevice {
            gpu_instance: 9,
            ..device
        };
        let error = cdi
            .write_mig(&set, &of(), &[wrong])
            .unwrap_err()
            .to_string();
        assert!(error.contains("gi9/access does not tell"), "{error}");
        cdi.clean(|uid| uid == "u");
        assert!(cdi.served(&set).is_some());
        cdi.clean(|_| false);
        assert!(cdi.served(&set).is_none());
    }

    #[test]
    fn a_share_gets_hami_cores_contract() {
        let (_dir, cdi) = world();
        let set = ids(&["a"]);
        std::fs::create_dir_all(cdi.hook.join("vgpu")).unwrap();
        std::fs::write(cdi.hook.join("vgpu/libvgpu.so"), "").unwrap();
        let share = Share {
            gpu: "GPU-1".into(),
            mem: 8_000,
            cores: 30,
        };
        cdi.write_shares(&set, &of(), &[(share, 0)]).unwrap();
        let edits = edits(&cdi, &set);
        let env = edits["env"].as_array().unwrap();
        assert!(env.contains(&"CUDA_DEVICE_MEMORY_LIMIT_0=8000m".into()));
        assert!(env.contains(&"CUDA_DEVICE_SM_LIMIT=30".into()));
        assert_eq!(edits["mounts"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_order_of_the_ids_does_not_matter() {
        assert_eq!(name(&ids(&["d7", "d6"])), name(&ids(&["d6", "d7"])));
        assert_ne!(name(&ids(&["d7"])), name(&ids(&["d6"])));
    }

    /// Where nodes may be made at all: they need root and the right to.
    #[test]
    fn device_nodes_that_are_missing_or_of_another_device_are_made() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let (dir, cdi) = world();
        let probe = dir.path().join("probe");
        if mknod(&probe, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).is_err() {
            return;
        }
        let path = cdi.dev.join("nvidia-caps/nvidia-cap120");
        for major in [508, 509] {
            cdi.make_node(&node("/dev/nvidia-caps/nvidia-cap120", major, 120));
            let meta = std::fs::metadata(&path).unwrap();
            assert!(meta.file_type().is_char_device());
            assert_eq!(meta.rdev(), makedev(u64::from(major), 120));
        }
        // Nothing outside of it.
        cdi.make_node(&node("/etc/x", 1, 3));
        assert!(!cdi.dev.join("etc").exists());
    }
}
