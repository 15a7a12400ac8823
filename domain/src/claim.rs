//! What a bound pod holds: the annotation `tessera.dev/claim`, written by the binding, carried out by the agent.

use serde::{Deserialize, Serialize};

use crate::{demand::ContainerKind, mode::VgpuMode, slices::Slices};

/// The devices of a bound pod, container by container.
///
/// Wire form `{"v":1,"containers":[…]}`; an unknown version is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Claim {
    /// Containers with devices, in the order in which they start.
    pub containers: Vec<ContainerClaim>,
}

/// The devices of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerClaim {
    /// The container's name.
    pub name: String,
    /// When it runs; two containers that never run together may hold the same slices.
    #[serde(default, skip_serializing_if = "is_app")]
    pub kind: ContainerKind,
    /// Its devices; an ordinary init container may list the very device of an application container.
    pub devices: Vec<ClaimedDevice>,
}

/// One device of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum ClaimedDevice {
    /// A GPU instance to be created at exactly this placement.
    Mig(Slot),
    /// A software share of a GPU.
    HamiCore(Share),
}

/// A GPU instance that should exist: GPU, profile and placement. One that exists is an [`Instance`](crate::gpu::Instance).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// UUID of the GPU.
    pub gpu: String,
    /// Name of the profile.
    pub profile: String,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// Memory that the GPU gives, MiB.
    pub mem: u64,
}

/// A software share of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// UUID of the GPU.
    pub gpu: String,
    /// Memory limit, MiB.
    pub mem: u64,
    /// Compute limit, percent; 0 is no limit.
    pub cores: u32,
}

/// What software shares take of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareUse {
    /// Number of shares.
    pub count: u32,
    /// MiB.
    pub mem: u64,
    /// Percent of compute.
    pub cores: u32,
}

/// An annotation that is not a claim.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Not the JSON of a claim.
    #[error("cannot read the claim: {0}")]
    Json(#[from] serde_json::Error),
}

/// The version of the wire form that this code writes and reads.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
#[error("version {version} is unknown, only version {VERSION} is supported")]
struct UnknownVersion {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    v: u32,
    containers: Vec<ContainerClaim>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde calls"
)]
fn is_app(kind: &ContainerKind) -> bool {
    *kind == ContainerKind::App
}

// === impl Claim ===

impl TryFrom<Wire> for Claim {
    type Error = UnknownVersion;

    fn try_from(wire: Wire) -> Result<Self, UnknownVersion> {
        match wire.v {
            VERSION => Ok(Self {
                containers: wire.containers,
            }),
            version => Err(UnknownVersion { version }),
        }
    }
}

impl From<Claim> for Wire {
    fn from(claim: Claim) -> Self {
        Self {
            v: VERSION,
            containers: claim.containers,
        }
    }
}

impl Claim {
    /// Reads the annotation.
    pub fn from_annotation(text: &str) -> Result<Self, ClaimError> {
        Ok(serde_json::from_str(text)?)
    }

    /// The annotation.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The mode of the claim's devices; a pod has one.
    pub fn mode(&self) -> Option<VgpuMode> {
        self.devices().next().map(ClaimedDevice::mode)
    }

    /// All devices of all containers; one that several containers use comes more than once.
    pub fn devices(&self) -> impl Iterator<Item = &ClaimedDevice> {
        self.containers
            .iter()
            .flat_map(|container| &container.devices)
    }

    /// All MIG slots of all containers.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.devices().filter_map(ClaimedDevice::slot)
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerClaim> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// The memory slices of a GPU that the claim holds for the pod's whole life.
    pub fn slices(&self, gpu: &str) -> Slices {
        self.slots()
            .filter(|slot| slot.gpu == gpu)
            .map(Slot::slices)
            .collect()
    }

    /// What the claim takes of a GPU in mode `hami-core`: the most that runs together.
    pub fn share_use(&self, gpu: &str) -> ShareUse {
        let used = |containers: &mut dyn Iterator<Item = &ContainerClaim>| {
            containers
                .flat_map(|container| &container.devices)
                .filter_map(ClaimedDevice::share)
                .filter(|share| share.gpu == gpu)
                .fold(ShareUse::default(), |sum, share| {
                    sum.plus(ShareUse::of(share))
                })
        };
        let of = |kind| used(&mut self.containers.iter().filter(move |c| c.kind == kind));
        let sidecars = of(ContainerKind::Sidecar);
        let mut most = sidecars.plus(of(ContainerKind::App));
        for init in self
            .containers
            .iter()
            .filter(|c| c.kind == ContainerKind::Init)
        {
            most = most.max(sidecars.plus(used(&mut std::iter::once(init))));
        }
        most
    }
}

impl ShareUse {
    /// What one share takes.
    pub fn of(share: &Share) -> Self {
        Self {
            count: 1,
            mem: share.mem,
            cores: share.cores,
        }
    }

    /// This without the other, which is part of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            count: self.count - other.count,
            mem: self.mem - other.mem,
            cores: self.cores - other.cores,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            mem: self.mem + other.mem,
            cores: self.cores + other.cores,
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            count: self.count.max(other.count),
            mem: self.mem.max(other.mem),
            cores: self.cores.max(other.cores),
        }
    }
}

impl ClaimedDevice {
    /// Its mode.
    pub fn mode(&self) -> VgpuMode {
        match self {
            Self::Mig(_) => VgpuMode::Mig,
            Self::HamiCore(_) => VgpuMode::HamiCore,
        }
    }

    /// UUID of its GPU.
    pub fn gpu(&self) -> &str {
        match self {
            Self::Mig(slot) => &slot.gpu,
            Self::HamiCore(share) => &share.gpu,
        }
    }

    /// Its memory, MiB.
    pub fn memory_mib(&self) -> u64 {
        match self {
            Self::Mig(slot) => slot.mem,
            Self::HamiCore(share) => share.mem,
        }
    }

    /// The slot, if it is one.
    pub fn slot(&self) -> Option<&Slot> {
        match self {
            Self::Mig(slot) => Some(slot),
            Self::HamiCore(_) => None,
        }
    }

    /// The share, if it is one.
    pub fn share(&self) -> Option<&Share> {
        match self {
            Self::Mig(_) => None,
            Self::HamiCore(share) => Some(share),
        }
    }
}

impl Slot {
    /// The memory slices that it takes.
    pub fn slices(&self) -> Slices {
        Slices::span(self.start, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(start: u8, size: u8) -> Slot {
        Slot {
            gpu: "GPU-1".into(),
            profile: "1g.10gb".into(),
            start,
            size,
            mem: 9_728,
        }
    }

    fn container(name: &str, kind: ContainerKind, devices: Vec<ClaimedDevice>) -> ContainerClaim {
        ContainerClaim {
            name: name.into(),
            kind,
            devices,
        }
    }

    #[test]
    fn the_wire_form_is_fixed() {
        let claim = Claim {
            containers: vec![
                container(
                    "prepare",
                    ContainerKind::Init,
                    vec![ClaimedDevice::Mig(slot(6, 1))],
                ),
                container(
                    "main",
                    ContainerKind::App,
                    vec![ClaimedDevice::Mig(slot(6, 1))],
                ),
                container(
                    "soft",
                    ContainerKind::App,
                    vec![ClaimedDevice::HamiCore(Share {
                        gpu: "GPU-2".into(),
                        mem: 8000,
                        cores: 30,
                    })],
                ),
            ],
        };
        let text = claim.to_annotation();
        insta::assert_snapshot!(text, @r#"{"v":1,"containers":[{"name":"prepare","kind":"init","devices":[{"mode":"mig","gpu":"GPU-1","profile":"1g.10gb","start":6,"size":1,"mem":9728}]},{"name":"main","devices":[{"mode":"mig","gpu":"GPU-1","profile":"1g.10gb","start":6,"size":1,"mem":9728}]},{"name":"soft","devices":[{"mode":"hami-core","gpu":"GPU-2","mem":8000,"cores":30}]}]}"#);
        assert_eq!(Claim::from_annotation(&text).unwrap(), claim);
        assert_eq!(claim.slices("GPU-1").count(), 1);
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let error = Claim::from_annotation(r#"{"v":2,"containers":[]}"#).unwrap_err();
        assert!(
            error.to_string().contains("version 2 is unknown"),
            "{error}"
        );
        assert!(Claim::from_annotation("junk").is_err());
    }

    #[test]
    fn shares_that_never_run_together_are_not_added() {
        let share = |mem| {
            vec![ClaimedDevice::HamiCore(Share {
                gpu: "GPU-1".into(),
                mem,
                cores: 10,
            })]
        };
        let claim = Claim {
            containers: vec![
                container("i", ContainerKind::Init, share(5_000)),
                container("s", ContainerKind::Sidecar, share(1_000)),
                container("a", ContainerKind::App, share(2_000)),
                container("b", ContainerKind::App, share(2_000)),
            ],
        };
        assert_eq!(
            claim.share_use("GPU-1"),
            ShareUse {
                count: 3,
                mem: 6_000,
                cores: 30
            }
        );
        assert_eq!(claim.share_use("GPU-2"), ShareUse::default());
    }
}
