//! Clients of the API server.

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{error::Error, state_dir::StateDir};

/// A client with the rights of a kubeconfig of `pki/`.
pub(crate) async fn client(state_dir: &StateDir, who: &str) -> Result<Client, Error> {
    let kubeconfig = Kubeconfig::read_from(state_dir.kubeconfig(who))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
