//! The edits of a container with MIG devices.

use crate::{
    gpus::inventory::LiveDevice,
    kubelet::cdi::{device_node::DeviceNode, driver::DriverProc, edits::Edits, error::CdiError},
};

/// The nodes of each device: its GPU, and the capabilities of its GPU instance and compute instance.
pub(crate) fn edits(driver: &DriverProc, devices: &[LiveDevice]) -> Result<Edits, CdiError> {
    let capability_major = driver.major_number("nvidia-caps")?;
    let mut edits = Edits::new(driver, devices.iter().map(|device| device.uuid.as_str()));
    for device in devices {
        edits.add_node(DeviceNode::gpu(device.minor));
        let (gi, ci) = (device.gpu_instance, device.compute_instance);
        for instance in [format!("gi{gi}"), format!("gi{gi}/ci{ci}")] {
            let minor = driver.capability_minor(device.minor, &instance)?;
            let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
            edits.add_node(DeviceNode::new(&path, capability_major, minor));
        }
    }
    Ok(edits)
}
