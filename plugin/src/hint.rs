//! The webhook's hint: the node that the plugin would choose now.

use domain::{config::Config, demand::Demand};
use placement::{cluster::Cluster, ranking::NodeChoice};

/// The best of all nodes for a demand; `None` where it fits nowhere.
pub fn best_node(cluster: &Cluster, demand: &Demand, config: &Config) -> Option<NodeChoice> {
    let names: Vec<&str> = cluster.nodes().map(|(name, _)| name).collect();
    cluster.rank(names, demand, config).into_iter().next()
}
