//! Flags of the webhook.

use std::net::SocketAddr;

use daemon::args::{AdminArgs, ConfigArgs, LogArgs};

/// Admits pods that ask for GPUs.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Address of the webhook, HTTPS.
    #[arg(long, env, default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Namespace of the Secret and the Service.
    #[arg(long, env, default_value = "tessera-system")]
    pub namespace: String,
    /// Service through which the API server calls the webhook.
    #[arg(long, env, default_value = "tessera-webhook")]
    pub service: String,
    /// Secret that stores the certificate.
    #[arg(long, env, default_value = "tessera-webhook-tls")]
    pub secret: String,
    /// `MutatingWebhookConfiguration` whose `caBundle` is written. Empty: something else writes it.
    #[arg(long, env, default_value = "tessera")]
    pub webhook_configuration: String,
    /// Additional DNS names or IP addresses of the certificate, separated by commas.
    #[arg(long, env, value_delimiter = ',')]
    pub extra_name: Vec<String>,
    /// The settings that all daemons share.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Probes and metrics.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        super::Args::command().debug_assert();
    }
}
