//! Issue 12: several plugins over one API server, and answers that are lost. The views are fed by no watch: the
//! longest delay that there can be.

use std::{sync::Arc, time::Duration};

use daemon::shutdown::CancellationToken;
use domain::{config::Config, fixtures, mode::VgpuMode};
use serde_json::json;
use tokio::task::JoinHandle;

use super::bind::{BindError, bind};
use crate::{
    context::Context,
    leadership::{
        identity::Identity,
        run::{LeaseSettings, run},
    },
    protocol::ExtenderBindingArgs,
    shared_cluster::SharedCluster,
    testing::{FakeApi, Fault},
};

/// A plugin whose node `n` has one A30.
struct Plugin {
    context: Context,
    token: CancellationToken,
    lease: JoinHandle<anyhow::Result<()>>,
}

impl Plugin {
    fn start(api: &FakeApi, process: &str, place: &str) -> Self {
        let cluster = SharedCluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.write().apply_node("n", node);
        let token = CancellationToken::new();
        let config = Arc::new(Config::default());
        let context = Context::new(api.client(), cluster, config, token.clone());
        let settings = LeaseSettings {
            namespace: "tessera-system".to_owned(),
            identity: Identity::new(process, place),
        };
        let lease = tokio::spawn(run(context.clone(), settings, token.clone()));
        Self {
            context,
            token,
            lease,
        }
    }

    /// The same, once it has the lease.
    async fn start_leading(api: &FakeApi) -> Self {
        let plugin = Self::start(api, "1", "pod");
        let leadership = &plugin.context.leadership;
        let _under_way = leadership.begin();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        leadership.wait(deadline).await.unwrap();
        plugin
    }

    fn bind(&self, pod: &str) -> JoinHandle<Result<(), BindError>> {
        let args = json!({ "PodName": pod, "PodNamespace": "ns", "PodUID": pod, "Node": "n" });
        let args: ExtenderBindingArgs = serde_json::from_value(args).unwrap();
        tokio::spawn(bind(self.context.clone(), args))
    }

    async fn bind_now(&self, pod: &str) -> Result<(), BindError> {
        self.bind(pod).await.unwrap()
    }

    /// As after kill -9, but that what it has sent goes on.
    fn kill(&self) {
        self.lease.abort();
        self.token.cancel();
    }

    async fn settled(&self, pod: &str) {
        for _ in 0..100 {
            if let Some(exclusive) = self
                .context
                .pending
                .begin(pod, domain::pod::PodName::new("ns", pod))
            {
                drop(exclusive);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the binding of {pod} is not settled");
    }
}

/// The A30 has four slots of this size.
const QUARTER: &str = "5900";
/// The A30 has one of this size.
const WHOLE: &str = "24000";

#[tokio::test]
async fn two_plugins_that_bind_at_the_same_time_hold_no_slot_twice() {
    let api = FakeApi::default();
    let plugins = [Plugin::start(&api, "1", "a"), Plugin::start(&api, "1", "b")];
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    for name in &names {
        api.create_pod(name, QUARTER);
    }
    let both = |range: std::ops::Range<usize>| -> Vec<_> {
        let pods = range.map(|number| (number, &names[number]));
        pods.map(|(number, pod)| plugins[number % 2].bind(pod))
            .collect()
    };
    let bindings = both(0..4);
    // The first that has the lease ends in order while the other one still waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let bound = api.bound().len();
    assert_eq!(bound, 2, "only one binds");
    let leads = |plugin: &&Plugin| plugin.context.leadership.term().is_some();
    assert_eq!(plugins.iter().filter(leads).count(), 1);
    let leader = plugins.iter().find(leads).unwrap();
    leader.token.cancel();
    for binding in bindings {
        binding.await.unwrap().unwrap();
    }
    assert_eq!(api.bound().len(), 4);
    for binding in both(4..8) {
        binding.await.unwrap().unwrap_err();
    }
    assert_eq!(
        api.bound().len(),
        4,
        "the GPU is full, also by the other plugin's claims"
    );
    assert_eq!(api.double_booked(), []);
}

#[tokio::test]
async fn what_a_plugin_was_sending_when_it_was_killed_is_void_for_the_next_one() {
    let api = FakeApi::default();
    for pod in ["held", "next"] {
        api.create_pod(pod, WHOLE);
    }
    let first = Plugin::start_leading(&api).await;
    api.fault("held", Fault::Held);
    let held = first.bind("held");
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.kill();
    let second = Plugin::start(&api, "2", "pod");
    second.bind_now("next").await.unwrap();
    api.deliver().await;
    held.await.unwrap().unwrap_err();
    assert_eq!(api.delivered(), [409], "it arrived, and was refused");
    assert_eq!(api.bound().keys().collect::<Vec<_>>(), ["next"]);
    assert_eq!(api.double_booked(), []);
}

#[tokio::test]
async fn what_was_carried_out_before_the_change_is_known_to_the_next_plugin() {
    let api = FakeApi::default();
    for pod in ["first", "next"] {
        api.create_pod(pod, WHOLE);
    }
    let first = Plugin::start_leading(&api).await;
    first.bind_now("first").await.unwrap();
    first.kill();
    let second = Plugin::start(&api, "2", "pod");
    let error = second.bind_now("next").await.unwrap_err();
    assert!(matches!(error, BindError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_binding_whose_answer_was_lost_keeps_its_claim_and_is_not_sent_twice() {
    let api = FakeApi::default();
    for pod in ["lost", "next"] {
        api.create_pod(pod, WHOLE);
    }
    let plugin = Plugin::start_leading(&api).await;
    api.fault("lost", Fault::AnswerLost);
    let error = plugin.bind_now("lost").await.unwrap_err();
    assert!(matches!(error, BindError::BindingUncertain(_)), "{error}");
    let error = plugin.bind_now("next").await.unwrap_err();
    assert!(matches!(error, BindError::Refused { .. }), "{error}");
    plugin.settled("lost").await;
    assert!(plugin.context.cluster.read().is_assumed("lost"));
    plugin.bind_now("lost").await.unwrap();
    assert_eq!(api.bindings(), 1, "what the pod shows is the answer");
}

#[tokio::test]
async fn a_binding_that_is_answered_before_it_is_carried_out_is_void_before_it_is_forgotten() {
    let api = FakeApi::default();
    for pod in ["late", "next"] {
        api.create_pod(pod, WHOLE);
    }
    let plugin = Plugin::start_leading(&api).await;
    api.fault("late", Fault::Late);
    let error = plugin.bind_now("late").await.unwrap_err();
    assert!(matches!(error, BindError::BindingUncertain(_)), "{error}");
    plugin.settled("late").await;
    assert!(!plugin.context.cluster.read().is_assumed("late"));
    plugin.bind_now("next").await.unwrap();
    api.deliver().await;
    assert_eq!(api.delivered(), [409]);
    assert_eq!(api.bound().keys().collect::<Vec<_>>(), ["next"]);
    assert_eq!(api.double_booked(), []);
}

#[tokio::test]
async fn a_pod_that_changes_between_reading_and_binding_is_bound_at_its_new_version() {
    let api = FakeApi::default();
    api.create_pod("p", WHOLE);
    let plugin = Plugin::start_leading(&api).await;
    api.fault("p", Fault::Held);
    let binding = plugin.bind("p");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let name = domain::pod::PodName::new("ns", "p");
    super::fence::fence(&api.client(), &name, "p")
        .await
        .unwrap();
    api.deliver().await;
    binding.await.unwrap().unwrap();
    assert_eq!(api.bindings(), 2);
}
