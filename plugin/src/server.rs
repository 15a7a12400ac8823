//! The HTTP server of the extender: routes kube-scheduler's requests to the verbs.

use std::time::Instant;

use daemon::{
    pods,
    ready::Readiness,
    serve::{self, Body, json, text},
};
use domain::{demand::Demand, pod::PodName};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use kube::ResourceExt;
use placement::cluster::PodUid;
use tokio::sync::mpsc;

use crate::{
    binding::bind::bind,
    context::Context,
    metrics::{Metrics, Verb},
    preemption::{select::may_free, verb::preempt},
    protocol::{ExtenderArgs, ExtenderBindingArgs, ExtenderBindingResult, FilterResult},
    unschedulable::{UnschedulablePod, UnschedulablePods},
    verbs,
};

/// Largest request: a pod with the names of ten thousand nodes.
const BODY_LIMIT: usize = 16 << 20;

/// Answers kube-scheduler.
pub(crate) struct Server {
    pub(crate) context: Context,
    /// Where pods that find no node are remembered.
    pub(crate) unschedulable: UnschedulablePods,
    /// Where pods that find no node are sent for preemption.
    pub(crate) unplaced: mpsc::UnboundedSender<PodUid>,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
}

impl Server {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(verb) = verb(&request) else {
            return text(
                StatusCode::NOT_FOUND,
                "POST /filter, /prioritize, /bind or /preempt\n",
            );
        };
        // A view that lacks claims would give their slices to other pods.
        let missing = self.readiness.waiting();
        if !missing.is_empty() {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("waiting for {}", missing.join(", ")),
            );
        }
        let started = Instant::now();
        let body = match serve::body(request, BODY_LIMIT).await {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        let response = self.call(verb, &body).await.unwrap_or_else(|error| {
            let message = format!("not a request of the extender protocol: {error}");
            text(StatusCode::BAD_REQUEST, message)
        });
        self.metrics.answered(verb, started.elapsed());
        response
    }

    async fn call(&self, verb: Verb, body: &[u8]) -> serde_json::Result<Response<Body>> {
        let Context {
            cluster, config, ..
        } = &self.context;
        Ok(match verb {
            Verb::filter => json(&self.filter(serde_json::from_slice(body)?)),
            Verb::prioritize => {
                let args = serde_json::from_slice(body)?;
                json(&verbs::prioritize(&args, &cluster.read(), config))
            }
            Verb::preempt => {
                let args = serde_json::from_slice(body)?;
                json(&preempt(args, &cluster.read(), config))
            }
            Verb::bind => json(&self.bind(serde_json::from_slice(body)?).await),
        })
    }

    /// Filters, and remembers a pod that found no node: under one lock, so that no change of the view is missed.
    fn filter(&self, args: ExtenderArgs) -> FilterResult {
        let config = &self.context.config;
        let (uid, request) = (args.pod.uid(), pods::request(&args.pod));
        let (name, spec) = (pods::name(&args.pod), args.pod.spec.as_ref());
        let never = spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never");
        let priority = spec.and_then(|spec| spec.priority).filter(|_| !never);
        let cluster = self.context.cluster.read();
        let result = verbs::filter(args, &cluster, config);
        if result.is_empty()
            && let (Some(uid), Ok(Some(demand))) = (uid, Demand::read(&request, config))
        {
            let may_free = |node: &str| may_free(&cluster, node, priority);
            let pod = UnschedulablePod::refused(name, demand, priority, &result, may_free);
            self.unschedulable.insert(&uid, pod);
            // The receiver lives as long as the process.
            drop(self.unplaced.send(uid));
        }
        result
    }

    async fn bind(&self, args: ExtenderBindingArgs) -> ExtenderBindingResult {
        let pod = PodName::new(&args.pod_namespace, &args.pod_name);
        let node = args.node.clone();
        // In a task: it must end in order although kube-scheduler hangs up.
        let bound = tokio::spawn(bind(self.context.clone(), args)).await;
        let error = match bound {
            Ok(Ok(())) => {
                tracing::info!(%pod, node, "Bound a pod");
                return ExtenderBindingResult::default();
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(%pod, node, error, "Cannot bind a pod");
        ExtenderBindingResult { error }
    }
}

fn verb(request: &Request<Incoming>) -> Option<Verb> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/filter") => Some(Verb::filter),
        (&Method::POST, "/prioritize") => Some(Verb::prioritize),
        (&Method::POST, "/bind") => Some(Verb::bind),
        (&Method::POST, "/preempt") => Some(Verb::preempt),
        _ => None,
    }
}
