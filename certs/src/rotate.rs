//! Keeps the Secret, the certificate in use and the configuration's `caBundle` in step.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use time::OffsetDateTime;

use crate::{ca_bundle, secret, settings::Settings};

/// Time between two checks of the certificate's age.
const CHECK_INTERVAL: Duration = Duration::from_hours(1);
/// Time until a failed check is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Calls `on_pair` with the serving chain and key at start and after every change, for ever.
///
/// Errors of the API server and of `on_pair` are logged, and the step is repeated.
pub async fn run(
    client: Client,
    settings: Settings,
    on_pair: impl Fn(&str, &str) -> anyhow::Result<()>,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let names = settings.names();
    let mut secret_changes = watcher::watch_object(secrets.clone(), &settings.secret)
        .default_backoff()
        .boxed();
    let mut configuration_changes = match &settings.webhook_configuration {
        Some(name) => watcher::watch_object(configurations.clone(), name)
            .default_backoff()
            .boxed(),
        None => futures::stream::pending().boxed(),
    };
    let mut configuration = None;
    let mut in_use = None;
    loop {
        let step = async {
            let now = OffsetDateTime::now_utc();
            let pair = secret::load_or_renew(&secrets, &settings.secret, &names, now).await?;
            if in_use.as_ref() != Some(&pair) {
                on_pair(&pair.certificate, &pair.key)?;
                tracing::info!(secret = settings.secret, "Loaded the serving certificate");
            }
            let pair = in_use.insert(pair);
            match &configuration {
                Some(current) => {
                    write_ca_bundle(&configurations, current, &pair.ca_certificate).await
                }
                None => Ok(()),
            }
        };
        let pause = match step.await {
            Ok(()) => CHECK_INTERVAL,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "Cannot rotate the certificate, retrying");
                RETRY_INTERVAL
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(change) = secret_changes.next() => if let Err(error) = change {
                tracing::debug!(%error, "Watch of the Secret failed");
            },
            Some(change) = configuration_changes.next() => match change {
                Ok(current) => configuration = current,
                Err(error) => tracing::debug!(%error, "Watch of the webhook configuration failed"),
            },
        }
    }
}

async fn write_ca_bundle(
    configurations: &Api<MutatingWebhookConfiguration>,
    current: &MutatingWebhookConfiguration,
    ca: &str,
) -> anyhow::Result<()> {
    let Some(patch) = ca_bundle::patch(current, ca) else {
        return Ok(());
    };
    let name = current.metadata.name.as_deref().unwrap_or_default();
    configurations
        .patch(name, &PatchParams::default(), &Patch::Json::<()>(patch))
        .await
        .with_context(|| format!("cannot write the caBundle of {name}"))?;
    tracing::info!(name, "Updated the caBundle");
    Ok(())
}
