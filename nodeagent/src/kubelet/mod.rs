//! kubelet's side: the device plugin service, device ids, and the CDI specs that containers are created with.

pub mod api;
pub mod cdi;
pub mod checkpoint;
pub mod device_ids;
pub mod device_plugin;
pub mod devices;
