//! The annotation, label and object names that users and the parts share.

/// User's pod annotation, `mig` or `hami-core`, and admin's node label, where `auto` is possible too.
pub const VGPU_MODE: &str = "nvidia.com/vgpu-mode";
/// Pod annotation: only GPUs whose model contains one of these (comma list, case ignored), as in `HAMi`.
pub const USE_GPUTYPE: &str = "nvidia.com/use-gputype";
/// Pod annotation: no GPU whose model contains one of these (comma list, case ignored), as in `HAMi`.
pub const NOUSE_GPUTYPE: &str = "nvidia.com/nouse-gputype";
/// Pod annotation: only these GPUs (comma list of UUIDs), as in `HAMi`.
pub const USE_GPUUUID: &str = "nvidia.com/use-gpuuuid";
/// Pod annotation: none of these GPUs (comma list of UUIDs), as in `HAMi`.
pub const NOUSE_GPUUUID: &str = "nvidia.com/nouse-gpuuuid";
/// Pod annotation: `true`: a larger memory size is acceptable where every place for the smallest sufficient one is taken.
pub const ALLOW_LARGER: &str = "nvidia.com/allow-larger-memory";
/// Pod annotation: `binpack` or `spread` over nodes, as in `HAMi`.
pub const NODE_POLICY: &str = "hami.io/node-scheduler-policy";
/// Pod annotation: `binpack` or `spread` over the GPUs of a node, as in `HAMi`.
pub const GPU_POLICY: &str = "hami.io/gpu-scheduler-policy";

/// Pod annotation: `true`: the pod may be restarted elsewhere to make room for another one.
pub const ALLOW_RESTART: &str = "nvidia.com/allow-restart";

/// Prefix of the annotations that only Tessera writes.
pub const TESSERA_PREFIX: &str = "tessera.dev/";
/// Pod annotation: the node; a hint of the webhook at first, and then the node that the pod was bound to.
pub const NODE: &str = "tessera.dev/node";
/// Pod annotation: `user` or `tessera`, who chose the mode.
pub const VGPU_MODE_BY: &str = "tessera.dev/vgpu-mode-by";
/// Node annotation: when GPU slices became free that an unschedulable pod could use; its change makes kube-scheduler try again.
pub const FREED: &str = "tessera.dev/freed";
/// Pod annotation: the [`Claim`](crate::claim::Claim), written by the binding.
pub const CLAIM: &str = "tessera.dev/claim";

/// Namespace label: with value [`IGNORE`] the namespace's pods are left alone. Read by the API server (`manifests/admission`).
pub const WEBHOOK: &str = "tessera.dev/webhook";
/// `HAMi`'s name of [`WEBHOOK`], which counts on namespaces only.
pub const HAMI_WEBHOOK: &str = "hami.io/webhook";
/// The value of [`WEBHOOK`] that exempts.
pub const IGNORE: &str = "ignore";

/// API group of `GpuNode`.
pub const GROUP: &str = "tessera.dev";
/// Node label that sets the layout for NVIDIA's MIG manager; where it is present, another manager may change instances.
pub const MIG_CONFIG: &str = "nvidia.com/mig.config";
/// Node label by which NVIDIA's GPU operator (26.7 and later) stops the clients of the driver that are not its own.
pub const GPU_CLIENT: &str = "nvidia.com/gpu.deploy.client";
/// Prefix of the node labels by which NVIDIA's GPU operator starts and stops what uses the driver.
pub const GPU_DEPLOY_PREFIX: &str = "nvidia.com/gpu.deploy.";
/// Name under which kube-scheduler runs our profile.
pub const SCHEDULER: &str = "tessera-scheduler";
