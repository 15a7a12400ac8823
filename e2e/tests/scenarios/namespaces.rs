//! Namespaces other than `default`.

use k8s_openapi::api::core::v1::{Namespace as Object, Pod, ServiceAccount};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::world::{WAIT_TIMEOUT, World};
use e2e::wait::until;

/// A namespace of one scenario.
pub(crate) struct Namespace {
    name: String,
    labels: Value,
}

impl Namespace {
    pub(crate) fn new(name: &str, labels: &Value) -> Self {
        Self {
            name: name.to_owned(),
            labels: labels.clone(),
        }
    }

    pub(crate) async fn create(&self, world: &World) -> anyhow::Result<()> {
        let object = json!({ "metadata": { "name": self.name, "labels": self.labels } });
        let object: Object = serde_json::from_value(object)?;
        let api: Api<Object> = Api::all(world.tessera.cluster.client());
        api.create(&PostParams::default(), &object).await?;
        // Without it no pod is admitted; a controller creates it.
        let accounts: Api<ServiceAccount> =
            Api::namespaced(world.tessera.cluster.client(), &self.name);
        until("the default service account", WAIT_TIMEOUT, async || {
            accounts.get("default").await.ok()
        })
        .await?;
        Ok(())
    }

    /// Deletes it and all that is in it, and waits until it is gone.
    pub(crate) async fn delete(&self, world: &World) -> anyhow::Result<()> {
        let api: Api<Object> = Api::all(world.tessera.cluster.client());
        api.delete(&self.name, &DeleteParams::default()).await?;
        let what = format!("namespace {} to be gone", self.name);
        until(&what, WAIT_TIMEOUT, async || {
            let found = api.get_opt(&self.name).await.ok()?;
            found.is_none().then_some(())
        })
        .await?;
        Ok(())
    }
}

impl World {
    pub(crate) async fn create_in(&self, namespace: &str, pod: &Value) -> anyhow::Result<Pod> {
        let pod: Pod = serde_json::from_value(pod.clone())?;
        let pods = self.pods_in(namespace);
        Ok(pods.create(&PostParams::default(), &pod).await?)
    }

    /// The pod as it would be created.
    pub(crate) async fn dry_run_in(&self, namespace: &str, pod: &Value) -> anyhow::Result<Pod> {
        let pod: Pod = serde_json::from_value(pod.clone())?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        Ok(self.pods_in(namespace).create(&params, &pod).await?)
    }

    pub(crate) async fn delete_in(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let pods = self.pods_in(namespace);
        pods.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}
