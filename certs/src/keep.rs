//! Keeps the Secret, what is served, and the configuration's `caBundle` in step.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use time::OffsetDateTime;

use crate::{ca_bundle, pair::Pair};

/// How often the certificate's age is looked at.
const LOOK: Duration = Duration::from_hours(1);
/// After an error.
const RETRY: Duration = Duration::from_secs(2);

/// Where the certificate lives and what for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Secret and the Service.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the Service that the API server calls.
    pub service: String,
    /// More DNS names or IP addresses to serve under.
    pub extra_names: Vec<String>,
    /// `MutatingWebhookConfiguration` to keep the `caBundle` of.
    pub webhook_configuration: Option<String>,
}

impl Settings {
    /// Subject alternative names of the serving certificate.
    pub fn names(&self) -> Vec<String> {
        let base = format!("{}.{}.svc", self.service, self.namespace);
        let mut names = vec![format!("{base}.cluster.local"), base];
        names.extend(self.extra_names.iter().cloned());
        names
    }
}

/// Gives `on_pair` the serving chain and key at first and after every change, for ever.
///
/// Errors (of the API server, of `on_pair`) are logged and tried again after two seconds.
pub async fn keep(
    client: Client,
    settings: Settings,
    on_pair: impl Fn(&str, &str) -> anyhow::Result<()>,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let mut changes = watcher::watch_object(secrets.clone(), &settings.secret)
        .default_backoff()
        .boxed();
    let mut configured = match &settings.webhook_configuration {
        Some(name) => watcher::watch_object(configurations.clone(), name)
            .default_backoff()
            .boxed(),
        None => futures::stream::pending().boxed(),
    };
    let mut configuration = None;
    let mut served = None;
    loop {
        let step = async {
            let pair = current(&secrets, &settings, OffsetDateTime::now_utc()).await?;
            if served.as_ref() != Some(&pair) {
                on_pair(&pair.certificate, &pair.key)?;
                tracing::info!(secret = settings.secret, "Serving the Secret's certificate");
            }
            served = Some(pair);
            let (Some(there), Some(pair)) = (&configuration, &served) else {
                return Ok(());
            };
            trust(&configurations, there, &pair.ca_certificate).await
        };
        let pause = match step.await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "Cannot keep the certificate");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(change) = changes.next() => if let Err(error) = change {
                tracing::debug!(%error, "Watch of the Secret");
            },
            Some(change) = configured.next() => match change {
                Ok(now) => configuration = now,
                Err(error) => tracing::debug!(%error, "Watch of the configuration"),
            },
        }
    }
}

async fn trust(
    configurations: &Api<MutatingWebhookConfiguration>,
    there: &MutatingWebhookConfiguration,
    ca: &str,
) -> anyhow::Result<()> {
    let Some(patch) = ca_bundle::patch(there, ca) else {
        return Ok(());
    };
    let name = there.metadata.name.as_deref().unwrap_or_default();
    configurations
        .patch(name, &PatchParams::default(), &Patch::Json::<()>(patch))
        .await
        .with_context(|| format!("cannot write the caBundle of {name}"))?;
    tracing::info!(name, "Wrote the caBundle");
    Ok(())
}

/// The pair in the Secret, made or renewed where needed; of several replicas the first writes.
async fn current(
    secrets: &Api<Secret>,
    settings: &Settings,
    now: OffsetDateTime,
) -> anyhow::Result<Pair> {
    let name = &settings.secret;
    let names = settings.names();
    loop {
        let found = secrets.get_opt(name).await;
        let found = found.with_context(|| format!("cannot read Secret {name}"))?;
        let (pair, written) = match found {
            None => {
                let pair = Pair::make(&names, now)?;
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("kubernetes.io/tls".to_owned()),
                    data: Some(pair.data()),
                    ..Secret::default()
                };
                let written = secrets.create(&PostParams::default(), &secret).await;
                (pair, written)
            }
            Some(mut secret) => {
                let pair = match Pair::read(secret.data.as_ref().unwrap_or(&[].into())) {
                    Ok(pair) if !pair.is_due(&names, now)? => return Ok(pair),
                    Ok(pair) => pair.renew(&names, now)?,
                    Err(error) => {
                        tracing::warn!(%error, "Replacing the contents of Secret {name}");
                        Pair::make(&names, now)?
                    }
                };
                secret.data = Some(pair.data());
                let written = secrets.replace(name, &PostParams::default(), &secret).await;
                (pair, written)
            }
        };
        match written {
            Ok(_) => return Ok(pair),
            // Another replica was first: its pair is as good.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot write Secret {name}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock;

    use super::*;

    type Server = mock::Handle<Request<Body>, Response<Body>>;

    fn settings() -> Settings {
        Settings {
            namespace: "tessera-system".into(),
            secret: "cert".into(),
            service: "webhook".into(),
            extra_names: Vec::new(),
            webhook_configuration: None,
        }
    }

    /// Answers one request and returns its method and body.
    async fn answer(server: &mut Server, code: u16, body: &Value) -> (Method, Value) {
        let (request, reply) = server.next_request().await.unwrap();
        let method = request.method().clone();
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let code = StatusCode::from_u16(code).unwrap();
        let mut response = Response::new(Body::from(serde_json::to_vec(body).unwrap()));
        *response.status_mut() = code;
        reply.send_response(response);
        (method, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    fn status(code: u16, reason: &str) -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason })
    }

    fn secret(pair: &Pair) -> Value {
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "cert", "resourceVersion": "7" }, "data": pair.data() })
    }

    fn start() -> (tokio::task::JoinHandle<anyhow::Result<Pair>>, Server) {
        let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let task = tokio::spawn(async move {
            let secrets = Api::namespaced(client, "tessera-system");
            current(&secrets, &settings(), OffsetDateTime::now_utc()).await
        });
        (task, server)
    }

    #[tokio::test]
    async fn the_first_replica_makes_the_pair_and_a_later_one_takes_it() {
        let (task, mut server) = start();
        answer(&mut server, 404, &status(404, "NotFound")).await;
        let (method, made) = answer(&mut server, 409, &status(409, "AlreadyExists")).await;
        assert_eq!(
            (method, &made["type"]),
            (Method::POST, &json!("kubernetes.io/tls"))
        );
        let winner = Pair::make(&settings().names(), OffsetDateTime::now_utc()).unwrap();
        answer(&mut server, 200, &secret(&winner)).await;
        assert_eq!(task.await.unwrap().unwrap(), winner);
    }

    #[tokio::test]
    async fn a_broken_secret_is_replaced_under_its_version() {
        let (task, mut server) = start();
        let mut broken =
            secret(&Pair::make(&settings().names(), OffsetDateTime::now_utc()).unwrap());
        broken["data"]["tls.crt"] = json!("AAAA");
        answer(&mut server, 200, &broken).await;
        let (method, written) = answer(&mut server, 200, &broken).await;
        assert_eq!(method, Method::PUT);
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        let pair = task.await.unwrap().unwrap();
        assert_eq!(written["data"], serde_json::to_value(pair.data()).unwrap());
    }

    #[test]
    fn the_names_are_those_that_the_api_server_calls() {
        let names = settings().names();
        assert!(names.contains(&"webhook.tessera-system.svc".to_owned()));
    }
}
