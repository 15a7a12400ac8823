//! kubelet's gRPC interfaces, generated from its own `.proto` files.

/// The device plugin API, `v1beta1`: we register with kubelet, kubelet calls us.
#[allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms
)]
pub mod device_plugin {
    tonic::include_proto!("v1beta1");
}

/// The `PodResources` API, `v1`: which container holds which device ids.
#[allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms
)]
pub mod pod_resources {
    tonic::include_proto!("v1");
}
