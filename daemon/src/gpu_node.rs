//! The object `GpuNode`; its schema is in `manifests/crd`.

use domain::GpuNodeStatus;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// What an admin says about a node's GPUs; nothing yet, the node's label says it.
#[derive(CustomResource, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "tessera.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    status = "GpuNodeStatus",
    schema = "disabled"
)]
pub struct GpuNodeSpec {}
