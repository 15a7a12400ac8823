//! Probes and metrics, on their own port.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::{
    ready::Readiness,
    serve::{self, text},
    shutdown::CancellationToken,
};

/// Serves `/live`, `/ready` (503 with what the process waits for) and `/metrics` (`OpenMetrics`).
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: Readiness,
    token: CancellationToken,
) -> anyhow::Result<()> {
    serve::plain(listener, token, move |request| {
        let (registry, readiness) = (registry.clone(), readiness.clone());
        async move {
            match (request.method(), request.uri().path()) {
                (&Method::GET, "/live") => text(StatusCode::OK, "live\n"),
                (&Method::GET, "/ready") => match readiness.waiting() {
                    waiting if waiting.is_empty() => text(StatusCode::OK, "ready\n"),
                    waiting => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("waiting for {}\n", waiting.join(", ")),
                    ),
                },
                (&Method::GET, "/metrics") => {
                    let mut out = String::new();
                    match encode(&mut out, &registry) {
                        Ok(()) => serve::typed(
                            StatusCode::OK,
                            "application/openmetrics-text; version=1.0.0; charset=utf-8",
                            out,
                        ),
                        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                    }
                }
                _ => text(StatusCode::NOT_FOUND, "GET /live, /ready or /metrics\n"),
            }
        }
    })
    .await
}
