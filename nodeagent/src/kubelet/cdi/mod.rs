//! CDI specs: what a container gets, written just before kubelet creates it (Container Device Interface 0.6).
//!
//! A container with MIG devices needs the device node of each GPU and the two capability nodes of each instance (MIG
//! user guide, "Device nodes and capabilities"). The spec names their major and minor numbers. The nodes are also
//! created in `/dev` of the host where they are missing: nobody else creates them, and a container in a user namespace
//! gets them from there by bind mount. The driver's libraries come from the spec that NVIDIA's toolkit generated: its
//! edits that are common to all devices are copied.

pub(crate) mod base_spec;
pub(crate) mod device_node;
pub(crate) mod driver;
pub(crate) mod edits;
pub(crate) mod error;
pub(crate) mod mig;
pub(crate) mod names;
pub(crate) mod share;
pub(crate) mod specs;
