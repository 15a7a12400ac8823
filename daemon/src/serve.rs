//! HTTP servers, plain and over TLS, that drain on shutdown, and what handlers need.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::shutdown::CancellationToken;

/// Body of our answers.
pub type Body = Full<Bytes>;

/// Time a client has for its TLS handshake, and for its request's headers.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time that running requests have after the shutdown signal.
const DRAIN: Duration = Duration::from_secs(8);

/// Serves plain HTTP until the token fires.
pub async fn plain<H, F>(
    listener: TcpListener,
    token: CancellationToken,
    handle: H,
) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    accept(listener, token, handle, |stream| async { Some(stream) }).await
}

/// Serves HTTPS until the token fires.
pub async fn tls<H, F>(
    listener: TcpListener,
    config: rustls::ServerConfig,
    token: CancellationToken,
    handle: H,
) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    accept(listener, token, handle, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Some(stream),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    None
                }
                Err(_) => {
                    tracing::debug!("TLS handshake timed out");
                    None
                }
            }
        }
    })
    .await
}

async fn accept<H, F, S, W, G>(
    listener: TcpListener,
    token: CancellationToken,
    handle: H,
    wrap: W,
) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    W: Fn(TcpStream) -> G + Clone + Send + Sync + 'static,
    G: Future<Output = Option<S>> + Send,
{
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = token.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "Accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (handle, wrap, watcher) = (handle.clone(), wrap.clone(), graceful.watcher());
        tokio::spawn(async move {
            let Some(stream) = wrap(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut server = auto::Builder::new(TokioExecutor::new());
            server
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE);
            let connection = server
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(error, "Connection lost");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("Some requests did not finish in time");
    }
    Ok(())
}

/// The body of a request, at most `limit` bytes; the error is the answer to give.
pub async fn body(request: Request<Incoming>, limit: usize) -> Result<Bytes, Box<Response<Body>>> {
    if request.body().size_hint().lower() > limit as u64 {
        return Err(Box::new(too_large(limit)));
    }
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Box::new(too_large(limit))),
        Err(error) => Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            format!("unreadable body: {error}"),
        ))),
    }
}

fn too_large(limit: usize) -> Response<Body> {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {limit} bytes"),
    )
}

/// A plain text answer.
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON answer.
pub fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// An answer of a media type.
pub fn typed(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
