//! HTTP servers, plain and over TLS, that drain on shutdown, and helpers for their handlers.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
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

/// Body of the responses.
pub type Body = Full<Bytes>;

/// Limit of a client's TLS handshake, and of sending its request headers.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for running requests to finish after the shutdown signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Binds a TCP socket.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

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
            match tokio::time::timeout(CLIENT_TIMEOUT, acceptor.accept(stream)).await {
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
                    tracing::warn!(%error, "Cannot accept a connection");
                    // Out of file descriptors, most likely: let some connections end.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Only a matter of latency.
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
                .header_read_timeout(CLIENT_TIMEOUT);
            let connection = server
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(error, "Connection lost");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("Some requests did not finish before the drain timeout");
    }
    Ok(())
}

/// Reads the body of a request, at most `limit` bytes; the error is the response to send.
pub async fn body(request: Request<Incoming>, limit: usize) -> Result<Bytes, Box<Response<Body>>> {
    if request.body().size_hint().lower() > limit as u64 {
        return Err(Box::new(too_large(limit)));
    }
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Box::new(too_large(limit))),
        Err(error) => Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            format!("cannot read the body: {error}"),
        ))),
    }
}

fn too_large(limit: usize) -> Response<Body> {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {limit} bytes"),
    )
}

/// A plain text response.
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON response.
pub fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A response with a media type.
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
