//! kubelet's side: the device plugin service, device ids, and the CDI specs that containers are created with.

pub mod api;
pub(crate) mod cdi;
pub(crate) mod checkpoint;
pub(crate) mod client;
pub(crate) mod device_ids;
pub(crate) mod device_plugin;
pub(crate) mod id_holders;
pub(crate) mod pod_resources;
pub(crate) mod prepare;
pub(crate) mod registration;
pub(crate) mod resolve;
