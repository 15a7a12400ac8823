//! What a cluster takes of its machine outside of the state directory. All of it is fixed: a machine has one such
//! cluster at a time.

/// kubelet's device plugin directory: a constant in kubelet, whatever its `--root-dir` is.
pub const DEVICE_PLUGIN_DIR: &str = "/var/lib/kubelet/device-plugins";

/// The bridge of the pod network.
pub(crate) const BRIDGE: &str = "tsr0";

/// The machine's address on that bridge: what kubelet serves on, out of reach for other machines.
pub(crate) const NODE_ADDRESS: &str = "10.244.0.1";

/// The pod network.
pub(crate) const SUBNET: &str = "10.244.0.0/24";

/// Name of the pod network.
pub(crate) const NETWORK: &str = "tessera-e2e";

/// The cgroup, in every hierarchy, that holds kubelet's pods.
pub(crate) const CGROUP: &str = "kubepods";

/// Port of kube-apiserver on 127.0.0.1.
pub const API_SERVER_PORT: u16 = 19643;

/// Ports of etcd: clients, peers.
pub(crate) const ETCD_PORTS: [u16; 2] = [19379, 19380];

/// Port of kubelet.
pub(crate) const KUBELET_PORT: u16 = 19250;

/// Port of the webhook; `e2e/manifests` names it too.
pub const WEBHOOK_PORT: u16 = 19443;

/// Port of the scheduler plugin.
pub const PLUGIN_PORT: u16 = 19888;

/// First of the ports of `/metrics`: webhook, plugin, then the agents.
pub const ADMIN_PORT: u16 = 19080;
