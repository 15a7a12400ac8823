//! The cluster itself: the processes of the control plane and of the one real node.

pub mod component;
mod control_plane;
mod real_node;
mod up;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Node, ServiceAccount},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use serde_json::json;

use crate::{
    client::client, error::Error, pki, processes::Processes, programs::tools_dir, record::Record,
    state_dir::StateDir, wait::until,
};

/// How long a component may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// A running cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Where its files are.
    pub state_dir: StateDir,
    /// Its processes.
    pub processes: Processes,
    /// Name of the real node.
    pub node: String,
    client: Client,
}

impl Cluster {
    /// The cluster that runs in a state directory.
    pub async fn attach(dir: &Path) -> Result<Self, Error> {
        let state_dir = StateDir::new(dir);
        let text =
            fs::read(state_dir.record()).map_err(|_| Error::NoCluster(state_dir.dir.clone()))?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|_| Error::NoCluster(state_dir.dir.clone()))?;
        Ok(Self {
            client: client(&state_dir, "admin").await?,
            processes: Processes::new(&state_dir),
            node: record.node,
            state_dir,
        })
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights of a kubeconfig of `pki/`.
    pub async fn client_as(&self, who: &str) -> Result<Client, Error> {
        client(&self.state_dir, who).await
    }

    /// Runs kubectl with all rights; its output, or its words as an error.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, Error> {
        let mut command = tokio::process::Command::from(self.kubectl_command());
        let output = command.args(args).output().await;
        let output = output.map_err(|source| Error::Spawn {
            program: tools_dir().join("controlplane"),
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy())
            .collect();
        Err(Error::Failed {
            program: format!("kubectl {}", words.join(" ")),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// kubectl with all rights, to be given its arguments.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(tools_dir().join("controlplane"));
        command
            .arg("kubectl")
            .arg("--cache-dir")
            .arg(self.state_dir.dir.join("kubectl"))
            .env("KUBECONFIG", self.state_dir.kubeconfig("admin"));
        command
    }

    /// A kubeconfig with a token of a service account, as its pod would have one: bound to its node where given.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        node: Option<&str>,
    ) -> Result<PathBuf, Error> {
        let bound_object_ref = match node {
            Some(node) => Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                uid: Api::<Node>::all(self.client()).get(node).await?.uid(),
            }),
            None => None,
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(24 * 3600),
                bound_object_ref,
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        let token = answer.status.map(|status| status.token).unwrap_or_default();
        let file = node.map_or_else(|| name.to_owned(), |node| format!("{name}-{node}"));
        pki::kubeconfig(&self.state_dir, &file, &json!({ "token": token }))?;
        Ok(self.state_dir.kubeconfig(&file))
    }

    /// Waits until kube-apiserver is ready.
    pub async fn api_server_is_ready(&self) -> Result<(), Error> {
        until("kube-apiserver to be ready", READY_TIMEOUT, async || {
            let request = http::Request::get("/readyz").body(vec![]).ok()?;
            self.client.request_text(request).await.ok()
        })
        .await
        .map(drop)
    }

    /// Waits until a node is ready.
    pub async fn node_is_ready(&self, name: &str) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.client());
        until(
            &format!("node {name} to be ready"),
            READY_TIMEOUT,
            async || {
                let node = nodes.get(name).await.ok()?;
                let conditions = node.status?.conditions?;
                conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
                    .then_some(())
            },
        )
        .await
        .map_err(|error| match error {
            Error::Timeout { .. } if self.processes.running("kubelet").is_none() => {
                self.processes.died("kubelet")
            }
            other => other,
        })
    }
}
