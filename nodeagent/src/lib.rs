//! The node agent: makes and removes GPU instances for the pods of its node.

pub mod kubelet_api;
