//! How webhook, plugin and scheduler are started.

use std::fs;

use serde_json::{Value, json};

use super::Tessera;
use crate::{
    error::{AtPath, Error},
    machine::{ADMIN_PORT, PLUGIN_PORT, WEBHOOK_PORT},
    processes::Spec,
    programs::{source, tools_dir},
};

impl Tessera {
    /// Waits until the webhook answers.
    pub async fn webhook_is_ready(&self) -> Result<(), Error> {
        self.is_ready("webhook", ADMIN_PORT).await
    }

    pub(super) async fn start_webhook(&self) -> Result<(), Error> {
        let kubeconfig = self.account("tessera-webhook", None).await?;
        self.start(
            &self
                .daemon("webhook", "tessera-webhook", &kubeconfig)
                .arg(format!("--listen=127.0.0.1:{WEBHOOK_PORT}"))
                .arg("--extra-name=127.0.0.1")
                .arg(format!("--admin-address=127.0.0.1:{ADMIN_PORT}")),
        )
    }

    pub(super) async fn start_plugin(&self) -> Result<(), Error> {
        let kubeconfig = self.account("tessera-scheduler", None).await?;
        self.start(
            &self
                .daemon("plugin", "tessera-plugin", &kubeconfig)
                .arg(format!("--listen=127.0.0.1:{PLUGIN_PORT}"))
                .arg(format!("--admin-address=127.0.0.1:{}", ADMIN_PORT + 1)),
        )
    }

    /// kube-scheduler by the shipped configuration, but for what a process has in another place than a pod.
    pub(super) async fn start_scheduler(&self) -> Result<(), Error> {
        let shipped = source("manifests/scheduler-config.yaml");
        let text = fs::read_to_string(&shipped).at(&shipped)?;
        let mut config: Value = serde_saphyr::from_str(&text).map_err(|error| Error::File {
            path: shipped,
            source: std::io::Error::other(error.to_string()),
        })?;
        let kubeconfig = self.account("tessera-scheduler", None).await?;
        config["clientConnection"] = json!({ "kubeconfig": kubeconfig });
        config["leaderElection"]["leaderElect"] = json!(false);
        config["extenders"][0]["urlPrefix"] = json!(format!("http://127.0.0.1:{PLUGIN_PORT}"));
        let file = self
            .cluster
            .state_dir
            .config()
            .join("tessera-scheduler.json");
        fs::write(&file, serde_json::to_vec_pretty(&config)?).at(&file)?;
        self.start(
            &Spec::new("tessera-scheduler", tools_dir().join("controlplane"))
                .arg("kube-scheduler")
                .arg(format!("--config={}", file.display()))
                .arg("--secure-port=0"),
        )
    }
}
