//! The variable by which a container gets devices from NVIDIA's container runtime, without any scheduler.

use k8s_openapi::api::core::v1::{Container, EnvVar};

const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// The runtime then does nothing (NVIDIA Container Toolkit, "Environment variables").
const VOID: &str = "void";

/// Whether the container asks for devices by the variable.
pub(crate) fn asks_for_devices(container: &Container) -> bool {
    container.env.iter().flatten().any(|variable| {
        variable.name == VISIBLE_DEVICES
            && !(variable.value_from.is_none()
                && matches!(variable.value.as_deref(), None | Some("" | "none" | VOID)))
    })
}

/// Sets the variable to `void`.
pub(crate) fn hide_devices(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    env.retain(|variable| variable.name != VISIBLE_DEVICES);
    env.push(EnvVar {
        name: VISIBLE_DEVICES.to_owned(),
        value: Some(VOID.to_owned()),
        value_from: None,
    });
}

/// The warning for the pod's author where that changes something.
pub(crate) fn warning(container: &Container) -> String {
    format!(
        "container {:?}: {VISIBLE_DEVICES} was set to {VOID:?}: a container only sees the devices in its limits",
        container.name
    )
}
