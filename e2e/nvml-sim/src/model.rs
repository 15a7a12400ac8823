//! The models of GPU that can be simulated, with the figures that the hardware reports.

use std::sync::LazyLock;

use serde::Deserialize;

/// A model of GPU.
#[derive(Debug, Deserialize)]
pub struct Model {
    /// `A100-SXM4-80GB`.
    pub key: String,
    /// `a100-80gb`, for the common ones.
    pub short: Option<String>,
    /// `nvmlDeviceGetName`.
    pub name: String,
    /// `Ampere`, `Hopper`, `Blackwell`.
    pub architecture: String,
    /// `8.0`.
    pub compute_capability: String,
    /// PCI device and vendor id.
    pub pci_device_id: u32,
    /// MiB.
    pub memory_mib: u64,
    /// Compute slices.
    pub compute_slices: u8,
    /// Memory slices.
    pub memory_slices: u8,
    /// GPU instance profiles.
    pub profiles: Vec<Profile>,
}

/// A GPU instance profile of a model.
#[derive(Debug, Deserialize)]
pub struct Profile {
    /// `1g.10gb`.
    pub name: String,
    /// `NVML_GPU_INSTANCE_PROFILE_*`.
    pub constant: u32,
    /// `info.id`.
    pub id: u32,
    /// MiB.
    pub memory_mib: u64,
    /// Multiprocessors.
    pub sm: u32,
    /// Compute slices.
    pub compute_slices: u8,
    /// Memory slices.
    pub size: u8,
    /// Possible starts.
    pub starts: Vec<u8>,
    /// `instanceCount`.
    pub max_count: u8,
    /// Copy, decoder, encoder, JPEG and OFA engines.
    pub engines: [u32; 5],
}

static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../domain/models.json"))
        .expect("the table is checked by a test")
});

/// All models.
pub fn models() -> &'static [Model] {
    &MODELS
}

/// The model of that key, short key or NVML name.
pub fn model(key: &str) -> Option<&'static Model> {
    models()
        .iter()
        .find(|model| model.key == key || model.short.as_deref() == Some(key) || model.name == key)
}

impl Model {
    /// Whether a change of MIG mode resets the GPU and the mode survives a reboot: Ampere; later ones do neither.
    pub fn is_ampere(&self) -> bool {
        self.architecture == "Ampere"
    }

    /// The profile of that NVML id.
    pub fn by_id(&self, id: u32) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.id == id)
    }

    /// The profile of that constant.
    pub fn by_constant(&self, constant: u32) -> Option<&Profile> {
        self.profiles
            .iter()
            .find(|profile| profile.constant == constant)
    }

    /// The profile that takes the whole GPU.
    pub fn whole(&self) -> &Profile {
        self.profiles
            .iter()
            .max_by_key(|p| (p.size, p.compute_slices))
            .expect("every model has profiles")
    }
}
