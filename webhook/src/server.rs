//! The HTTPS server: routes the API server's requests to the review.

use std::{sync::Arc, time::Instant};

use daemon::serve::{self, Body, json, text};
use domain::config::Config;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use plugin::shared_cluster::SharedCluster;

use crate::{gpu_nodes::SharedGpuNodes, metrics::Metrics, mutate::View, review::review};

/// Largest request: etcd stores objects of at most 1.5 MiB, and a review has at most two of them.
const BODY_LIMIT: usize = 8 << 20;

/// Answers the API server.
pub(crate) struct Server {
    pub(crate) cluster: SharedCluster,
    pub(crate) gpu_nodes: SharedGpuNodes,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Metrics,
}

impl Server {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if (request.method(), request.uri().path()) != (&Method::POST, "/mutate") {
            return text(StatusCode::NOT_FOUND, "POST /mutate\n");
        }
        let started = Instant::now();
        let body = match serve::body(request, BODY_LIMIT).await {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        let (review, outcome) = review(
            &body,
            View {
                cluster: &self.cluster.read(),
                gpu_nodes: &self.gpu_nodes.read(),
                config: &self.config,
            },
        );
        self.metrics.reviewed(outcome, started.elapsed());
        json(&review)
    }
}
