//! Reports on its `GpuNode` that a node's agent is gone, which the agent itself cannot.
//!
//! No heartbeat is needed: kubelet notices at once that an agent that was killed is gone, and its node has no allocatable
//! devices within ten seconds. An agent that is frozen keeps its connection to kubelet; its liveness probe ends it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use daemon::gpu_node::GpuNode;
use domain::status::{AGENT_GONE, Condition, GpuNodeStatus, REGISTERED};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use placement::cluster::Cluster;

use crate::context::Context;

/// Time between two looks.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long kubelet and the agent may contradict each other: a restarted agent has registered again by then.
const CONTRADICTION_TIMEOUT: Duration = Duration::from_secs(20);

/// What a `GpuNode` should say of its agent, and does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Gone,
    /// It was reported as gone, and kubelet has its devices again.
    Back,
}

/// The nodes whose kubelet contradicts what their agent reported, and since when.
#[derive(Debug, Default)]
struct Contradictions(HashMap<String, (Report, Instant, Timestamp)>);

impl Contradictions {
    /// Looks at all nodes; returns those that have contradicted long enough, and since when.
    fn look(&mut self, cluster: &Cluster, now: Instant) -> Vec<(String, Report, Timestamp)> {
        let current: HashMap<&str, Report> = cluster
            .nodes()
            .filter_map(|(name, status)| Some((name, report(status, cluster.allocatable(name)?)?)))
            .collect();
        self.0
            .retain(|node, (report, ..)| current.get(node.as_str()) == Some(report));
        for (node, report) in current {
            let fresh = || (report, now, Timestamp::now());
            self.0.entry(node.to_owned()).or_insert_with(fresh);
        }
        let late = |since: Instant| now.saturating_duration_since(since) >= CONTRADICTION_TIMEOUT;
        let nodes = self.0.iter().filter(|(_, (_, since, _))| late(*since));
        nodes
            .map(|(node, (report, _, since))| (node.clone(), *report, *since))
            .collect()
    }
}

/// What a `GpuNode` should say, where kubelet has (`allocatable`) devices of it or none.
fn report(status: &GpuNodeStatus, allocatable: bool) -> Option<Report> {
    let mut conditions = status.conditions.iter();
    let marked = conditions.any(|known| known.kind == REGISTERED && known.reason == AGENT_GONE);
    // An agent without a healthy GPU has no devices for kubelet, however alive it is.
    let has_devices = status.gpus.iter().any(|gpu| gpu.unhealthy.is_none());
    match (marked, allocatable) {
        (false, false) if status.is_registered() && has_devices => Some(Report::Gone),
        (true, true) => Some(Report::Back),
        _ => None,
    }
}

/// The conditions as they should be, in place of those of the agent.
fn conditions(known: &[Condition], report: Report, since: Timestamp) -> Vec<Condition> {
    let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let (reason, message) = match report {
        Report::Gone => (
            AGENT_GONE,
            format!(
                "kubelet has had no devices of this node since {}: its agent is gone or hangs. Look at the pod \
                 tessera-nodeagent on this node",
                time(since)
            ),
        ),
        Report::Back => ("Registered", "kubelet has the devices again".to_owned()),
    };
    let as_reported = |known: &Condition| {
        let status = match (known.kind.as_str(), report) {
            ("Ready", Report::Gone) => "Unknown",
            (REGISTERED, Report::Gone) => "False",
            ("Ready" | REGISTERED, Report::Back) if known.reason == AGENT_GONE => "True",
            _ => return known.clone(),
        };
        Condition {
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            last_transition_time: time(Timestamp::now()),
            ..known.clone()
        }
    };
    let mut conditions: Vec<Condition> = known.iter().map(as_reported).collect();
    if report == Report::Gone && !known.iter().any(|known| known.kind == REGISTERED) {
        conditions.push(Condition {
            kind: REGISTERED.to_owned(),
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: time(Timestamp::now()),
        });
    }
    conditions
}

/// Reports agents that are gone, and that are back, for ever.
pub(crate) async fn run(context: Context) {
    let api: Api<GpuNode> = Api::all(context.client.clone());
    let mut contradictions = Contradictions::default();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let late = contradictions.look(&context.cluster.read(), Instant::now());
        for (node, what, since) in late {
            match write(&api, &node, what, since).await {
                Ok(false) => {}
                Ok(true) => tracing::warn!(node, report = ?what, "Reported the state of an agent"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(node, error, "Cannot report the state of an agent, retrying");
                }
            }
        }
    }
}

/// Changes the conditions, unless they say so already or the agent has just changed them itself.
async fn write(
    api: &Api<GpuNode>,
    name: &str,
    what: Report,
    since: Timestamp,
) -> kube::Result<bool> {
    let Some(node) = api.get_opt(name).await? else {
        return Ok(false);
    };
    let status = node.status.as_ref();
    let Some(status) = status.filter(|s| report(s, what == Report::Back) == Some(what)) else {
        return Ok(false);
    };
    let patch = serde_json::json!({
        "metadata": { "resourceVersion": node.resource_version() },
        "status": { "conditions": conditions(&status.conditions, what, since) },
    });
    let params = PatchParams::default();
    match api.patch_status(name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode};

    fn condition(kind: &str, status: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: "ByTheAgent".to_owned(),
            message: "m".to_owned(),
            last_transition_time: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    fn node() -> GpuNodeStatus {
        let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        let kinds = [
            ("Ready", "True"),
            (REGISTERED, "True"),
            ("GpusUnhealthy", "False"),
        ];
        node.conditions = kinds.map(|(kind, status)| condition(kind, status)).into();
        node
    }

    /// Issue 12: 90 s after kill -9 the `GpuNode` said that all was well.
    #[test]
    fn an_agent_is_gone_when_kubelet_has_had_no_devices_for_a_while() {
        let (mut cluster, start) = (Cluster::default(), Instant::now());
        let (mut contradictions, after) = (Contradictions::default(), |s| {
            start + Duration::from_secs(s)
        });
        cluster.apply_node("n", node());
        let look = |contradictions: &mut Contradictions, cluster: &Cluster, seconds| {
            let late = contradictions.look(cluster, after(seconds));
            late.into_iter()
                .map(|(_, report, _)| report)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            look(&mut contradictions, &cluster, 0),
            [],
            "nothing is known of kubelet"
        );
        cluster.set_allocatable("n", false);
        assert_eq!(look(&mut contradictions, &cluster, 0), []);
        assert_eq!(look(&mut contradictions, &cluster, 19), []);
        cluster.set_allocatable("n", true);
        assert_eq!(
            look(&mut contradictions, &cluster, 20),
            [],
            "it came back in time"
        );
        cluster.set_allocatable("n", false);
        assert_eq!(look(&mut contradictions, &cluster, 21), []);
        assert_eq!(look(&mut contradictions, &cluster, 41), [Report::Gone]);
        let mut status = node();
        status.conditions = conditions(&status.conditions, Report::Gone, Timestamp::now());
        cluster.apply_node("n", status.clone());
        assert_eq!(
            look(&mut contradictions, &cluster, 99),
            [],
            "it is reported"
        );
        cluster.set_allocatable("n", true);
        assert_eq!(look(&mut contradictions, &cluster, 100), []);
        assert_eq!(look(&mut contradictions, &cluster, 120), [Report::Back]);
    }

    #[test]
    fn an_agent_without_a_healthy_gpu_or_that_is_ending_is_not_gone() {
        let mut unhealthy = node();
        unhealthy.gpus[0].unhealthy = Some("XID 79".to_owned());
        assert_eq!(report(&unhealthy, false), None);
        let mut ending = node();
        ending.conditions[1] = condition(REGISTERED, "False");
        assert_eq!(report(&ending, false), None);
        assert_eq!(report(&node(), false), Some(Report::Gone));
        assert_eq!(report(&node(), true), None);
    }

    #[test]
    fn the_conditions_say_since_when_and_what_to_do_and_the_others_stay() {
        let since: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        let gone = conditions(&node().conditions, Report::Gone, since);
        let brief = |conditions: &[Condition]| -> Vec<String> {
            let each = conditions.iter();
            each.map(|c| format!("{} {} {}", c.kind, c.status, c.reason))
                .collect()
        };
        let expected = [
            "Ready Unknown AgentGone",
            "Registered False AgentGone",
            "GpusUnhealthy False ByTheAgent",
        ];
        assert_eq!(brief(&gone), expected);
        assert!(
            gone[0].message.contains("since 2026-05-01T10:00:00Z"),
            "{}",
            gone[0].message
        );
        assert!(gone[0].message.contains("tessera-nodeagent"));
        let back = brief(&conditions(&gone, Report::Back, since));
        let expected = [
            "Ready True Registered",
            "Registered True Registered",
            "GpusUnhealthy False ByTheAgent",
        ];
        assert_eq!(back, expected);
        assert_eq!(
            brief(&conditions(&[], Report::Gone, since)),
            ["Registered False AgentGone"]
        );
    }
}
