//! Generates kubelet's device plugin and PodResources APIs, without needing `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    for api in ["proto/deviceplugin/v1beta1", "proto/podresources/v1"] {
        let descriptors = protox::compile(["api.proto"], [api])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
