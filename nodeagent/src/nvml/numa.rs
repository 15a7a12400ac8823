//! The NUMA node of a GPU. The kernel knows that of its PCI device; NVML answers only on some platforms.

use std::{ffi::c_char, path::Path};

use nvml_wrapper_sys::bindings as sys;

use super::{
    error::call,
    session::{Session, c_text},
};

impl Session {
    /// The PCI bus id as NVML writes it, `00000000:07:00.0`.
    pub(super) fn pci_bus_id(&self, device: sys::nvmlDevice_t) -> Option<String> {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self, nvmlDeviceGetPciInfo_v3(device, &raw mut pci)).ok()?;
        let bytes: Vec<u8> = pci
            .busId
            .iter()
            .map(|c: &c_char| c.to_ne_bytes()[0])
            .collect();
        Some(c_text(&bytes)).filter(|id| !id.is_empty())
    }

    /// What NVML reports; "Not Supported" on x86.
    pub(super) fn numa_by_nvml(&self, device: sys::nvmlDevice_t) -> Option<u32> {
        let mut numa = 0;
        call!(self, nvmlDeviceGetNumaNodeId(device, &raw mut numa)).ok()?;
        Some(numa)
    }
}

/// The NUMA node of the PCI device of that bus id; the kernel writes -1 for "none".
pub(super) fn of_pci_device(sysfs: &Path, bus_id: Option<&str>) -> Option<u32> {
    let path = sysfs
        .join("bus/pci/devices")
        .join(sysfs_name(bus_id?)?)
        .join("numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The kernel's name of a PCI device: NVML writes eight digits of the domain and capital letters, the kernel four digits
/// and small ones.
fn sysfs_name(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{}", rest.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 12: on x86 NVML reports no NUMA node, and the kernel does.
    #[test]
    fn the_kernel_knows_the_numa_node_of_a_pci_device() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("0000:07:00.0", "1\n"), ("0001:af:00.0", "-1\n")] {
            let device = dir.path().join("bus/pci/devices").join(name);
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("numa_node"), text).unwrap();
        }
        let node = |bus_id| of_pci_device(dir.path(), bus_id);
        assert_eq!(node(Some("00000000:07:00.0")), Some(1));
        assert_eq!(node(Some("00000001:AF:00.0")), None, "-1 is no node");
        assert_eq!(node(Some("00000000:08:00.0")), None);
        assert_eq!((node(Some("junk")), node(None)), (None, None));
    }
}
