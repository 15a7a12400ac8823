//! The components of the cluster that a scenario may stop and start.

/// A component that a scenario may stop and start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// etcd.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    Controllers,
    /// The default kube-scheduler.
    Scheduler,
    /// containerd.
    Containerd,
    /// kubelet of the real node.
    Kubelet,
}

impl Component {
    /// Name of its process.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
        }
    }
}
