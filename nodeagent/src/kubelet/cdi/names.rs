//! How our CDI devices and their spec files are named.

use sha2::{Digest, Sha256};

use crate::kubelet::id_holders::DeviceIds;

/// Vendor and class of our devices.
pub(crate) const KIND: &str = "tessera.dev/gpu";
const FILE_PREFIX: &str = "tessera.dev-gpu-";
/// Bytes of the digest that make a name: enough to tell the sets of ids of one node apart.
const DIGEST_BYTES: usize = 8;

/// The name of the device for a set of ids: a digest, the same for any order of the ids.
pub(crate) fn device(ids: &DeviceIds) -> String {
    let mut digest = Sha256::new();
    for id in ids {
        digest.update(id);
        digest.update([0]);
    }
    digest
        .finalize()
        .iter()
        .take(DIGEST_BYTES)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The name by which kubelet hands the device to the container runtime.
pub(crate) fn qualified(ids: &DeviceIds) -> String {
    format!("{KIND}={}", device(ids))
}

/// The file name of a device's spec.
pub(crate) fn file(device: &str) -> String {
    format!("{FILE_PREFIX}{device}.json")
}

/// Whether a file in the directory of specs is ours.
pub(crate) fn is_our_file(name: &str) -> bool {
    name.starts_with(FILE_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[&str]) -> DeviceIds {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_order_of_the_ids_does_not_matter() {
        assert_eq!(device(&ids(&["d7", "d6"])), device(&ids(&["d6", "d7"])));
        assert_ne!(device(&ids(&["d7"])), device(&ids(&["d6"])));
    }
}
