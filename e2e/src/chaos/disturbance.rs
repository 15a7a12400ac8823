//! The kinds of disturbance.

use std::fmt;

use super::nodes::{HOLLOW, REAL};

/// A kind of disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Disturbance {
    AgentKilled,
    AgentUpdated,
    AgentFrozen,
    PluginKilled,
    PluginFrozen,
    WebhookKilled,
    SchedulerKilled,
    KubeletRestarted,
    ApiServerAway,
    NodeRebooted(&'static str),
    ClockJumps,
    DestroyInUse,
    DestroyStorm,
    CreateFails,
    GpuFault,
    GpuLost,
}

/// All of them.
pub(super) const DISTURBANCES: [Disturbance; 17] = [
    Disturbance::AgentKilled,
    Disturbance::AgentUpdated,
    Disturbance::AgentFrozen,
    Disturbance::PluginKilled,
    Disturbance::PluginFrozen,
    Disturbance::WebhookKilled,
    Disturbance::SchedulerKilled,
    Disturbance::KubeletRestarted,
    Disturbance::ApiServerAway,
    Disturbance::NodeRebooted(REAL),
    Disturbance::NodeRebooted(HOLLOW),
    Disturbance::ClockJumps,
    Disturbance::DestroyInUse,
    Disturbance::DestroyStorm,
    Disturbance::CreateFails,
    Disturbance::GpuFault,
    Disturbance::GpuLost,
];

/// How far the clocks of the daemons jump. Nothing expires within hours: the test PKI's certificates are good for
/// centuries, the webhook's for 90 days (it is made before the first jump and checked by the API server, whose clock
/// stays), and of a token's 24 hours the API server's clock decides.
pub(super) const JUMPS: [&str; 6] = ["+2h", "-90m", "+20h", "-20h", "+11m", "-3h"];

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeRebooted(node) => write!(f, "NodeRebooted {node}"),
            other => write!(f, "{other:?}"),
        }
    }
}
