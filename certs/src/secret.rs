//! The Secret that all replicas of the webhook share.

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use time::OffsetDateTime;

use crate::pair::Pair;

/// Returns the pair in the Secret, after creating or renewing it where that is due.
///
/// Several replicas may try at once: the first write wins, and the others take what it wrote.
pub(crate) async fn load_or_renew(
    secrets: &Api<Secret>,
    name: &str,
    names: &[String],
    now: OffsetDateTime,
) -> anyhow::Result<Pair> {
    loop {
        let found = secrets.get_opt(name).await;
        let found = found.with_context(|| format!("cannot read Secret {name}"))?;
        let (pair, written) = match found {
            None => {
                let pair = Pair::generate(names, now)?;
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(name.to_owned()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("kubernetes.io/tls".to_owned()),
                    data: Some(pair.to_secret_data()),
                    ..Secret::default()
                };
                let written = secrets.create(&PostParams::default(), &secret).await;
                (pair, written)
            }
            Some(mut secret) => {
                let data = secret.data.unwrap_or_default();
                let pair = match Pair::from_secret_data(&data) {
                    Ok(pair) if !pair.is_due(names, now)? => return Ok(pair),
                    Ok(pair) => pair.renew(names, now)?,
                    Err(error) => {
                        tracing::warn!(secret = name, %error, "Replacing an unusable certificate");
                        Pair::generate(names, now)?
                    }
                };
                secret.data = Some(pair.to_secret_data());
                // The Secret still has its resourceVersion: a write by another replica makes this one fail.
                let written = secrets.replace(name, &PostParams::default(), &secret).await;
                (pair, written)
            }
        };
        match written {
            Ok(_) => return Ok(pair),
            // Another replica was first: use its pair.
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
    use kube::{Client, client::Body};
    use serde_json::{Value, json};
    use tower_test::mock;

    use super::*;

    type Server = mock::Handle<Request<Body>, Response<Body>>;

    fn names() -> Vec<String> {
        vec!["webhook.tessera-system.svc".to_owned()]
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
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "cert", "resourceVersion": "7" }, "data": pair.to_secret_data() })
    }

    fn start() -> (tokio::task::JoinHandle<anyhow::Result<Pair>>, Server) {
        let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let task = tokio::spawn(async move {
            let secrets = Api::namespaced(client, "tessera-system");
            load_or_renew(&secrets, "cert", &names(), OffsetDateTime::now_utc()).await
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
        let winner = Pair::generate(&names(), OffsetDateTime::now_utc()).unwrap();
        answer(&mut server, 200, &secret(&winner)).await;
        assert_eq!(task.await.unwrap().unwrap(), winner);
    }

    #[tokio::test]
    async fn a_broken_secret_is_replaced_under_its_version() {
        let (task, mut server) = start();
        let mut broken = secret(&Pair::generate(&names(), OffsetDateTime::now_utc()).unwrap());
        broken["data"]["tls.crt"] = json!("AAAA");
        answer(&mut server, 200, &broken).await;
        let (method, written) = answer(&mut server, 200, &broken).await;
        assert_eq!(method, Method::PUT);
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        let pair = task.await.unwrap().unwrap();
        assert_eq!(
            written["data"],
            serde_json::to_value(pair.to_secret_data()).unwrap()
        );
    }
}
