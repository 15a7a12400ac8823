//! A hollow kubelet: it speaks kubelet's side of all APIs that an agent and the control plane use, and runs no
//! containers.
//!
//! It does what a real kubelet was seen to do: the other containers get an init container's device ids
//! again, the ids come in another order at `PreStartContainer`, `PodResources` hides init
//! containers, an error of `PreStartContainer` is retried and one of `Allocate` fails the pod. What
//! a container would have been created with is written to `containers/UID/NAME.json`: these files
//! are the container runtime, and a kubelet that finds none for a container that ran knows that the
//! node was rebooted.

mod cdi;
mod devices;
mod node;
mod plugins;
mod pod;
mod pod_resources;
mod run;
mod sockets;
mod status;

use std::{path::PathBuf, str::FromStr, sync::Arc};

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use self::node::Node;

/// A kubelet without containers.
#[derive(Clone, Debug, clap::Parser)]
pub struct Args {
    /// Directory of the node: sockets, CDI specs, containers.
    #[arg(long)]
    dir: PathBuf,
    /// The node's kubeconfig.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Name and labels of the node: `NAME` or `NAME=label=value,label=value`.
    #[arg(long)]
    node: NodeArg,
}

/// A node's name and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeArg {
    name: String,
    labels: Vec<(String, String)>,
}

/// A label that is no pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label {0:?} has no value; write key=value")]
struct LabelWithoutValue(String);

impl FromStr for NodeArg {
    type Err = LabelWithoutValue;

    fn from_str(text: &str) -> Result<Self, LabelWithoutValue> {
        let (name, labels) = text.split_once('=').unwrap_or((text, ""));
        let labels = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| {
                let pair = label.split_once('=');
                pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .ok_or_else(|| LabelWithoutValue(label.to_owned()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name: name.to_owned(),
            labels,
        })
    }
}

/// Runs the node until the process is ended.
pub async fn run(args: Args) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let kubeconfig = Kubeconfig::read_from(&args.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let NodeArg { name, labels } = args.node;
    let node = Node::new(&name, args.dir, client).with_context(|| format!("node {name}"))?;
    Box::pin(run::run(Arc::new(node), labels)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_with_its_labels() {
        let node: NodeArg = "a=x/y=1,z=2".parse().unwrap();
        assert_eq!(node.name, "a");
        assert_eq!(
            node.labels,
            [("x/y".into(), "1".into()), ("z".into(), "2".into())]
        );
        assert!("a".parse::<NodeArg>().unwrap().labels.is_empty());
        assert!("a=x".parse::<NodeArg>().is_err());
    }
}
