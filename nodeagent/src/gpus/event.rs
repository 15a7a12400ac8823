//! What the agent reports as Kubernetes Events, about pods and the node.

/// Something that happened to a pod's or the node's instances, to be reported as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEvent {
    /// UID of the pod that it concerns; `None`: it concerns the node.
    pub pod_uid: Option<String>,
    /// Whether the Event has type `Warning`.
    pub is_warning: bool,
    /// Reason in CamelCase.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// UUID of a GPU on which the pod cannot start: the pod is failed, so that its controller creates a new one.
    pub fails_pod: Option<String>,
}

impl AgentEvent {
    /// An Event of type `Normal`.
    pub fn note(pod_uid: Option<String>, reason: &'static str, message: String) -> Self {
        Self {
            pod_uid,
            is_warning: false,
            reason,
            message,
            fails_pod: None,
        }
    }

    /// An Event of type `Warning`.
    pub fn warning(pod_uid: Option<String>, reason: &'static str, message: String) -> Self {
        Self {
            is_warning: true,
            ..Self::note(pod_uid, reason, message)
        }
    }
}
