//! The scheduler plugin of Tessera, served to kube-scheduler as an HTTP extender on loopback.
//!
//! ```text
//! kube-scheduler ──► server ──► verbs (filter, prioritize), binding, preemption::verb
//! API server ──► watches ──► shared_cluster (the view) ──► requeue ──► annotation of the node
//!                                   ├──► preemption::run ──► evictions
//!                                   └──► gone_agents ──► conditions of the `GpuNode`
//! ```
//!
//! In the words of the scheduler framework: `verbs` are *Filter* and *Score*, which plan the pod on each
//! node; `binding` is *Reserve* and *Bind*, which plans again, assumes the claim, and posts the binding that
//! carries it; `leadership` keeps two plugins from binding at the same time. The state is rebuilt from the API server alone: `GpuNode`s and the claims on pods.
//!
//! The webhook embeds [`hint`], [`shared_cluster`] and [`watches`].

pub mod args;
mod binding;
mod context;
mod gone_agents;
pub mod hint;
mod leadership;
mod metrics;
mod preemption;
mod protocol;
mod requeue;
mod server;
pub mod shared_cluster;
#[cfg(test)]
mod testing;
mod tuning;
mod unschedulable;
mod verbs;
pub mod watches;

use std::{sync::Arc, time::Duration};

use daemon::{admin, ready::Readiness, serve, shutdown, tasks::Tasks};
use domain::rule::Rule;
use tokio::sync::mpsc;

use crate::{
    args::Args,
    binding::settle::check_unseen,
    context::Context,
    leadership::{identity::Identity, run::LeaseSettings},
    metrics::Metrics,
    server::Server,
    shared_cluster::SharedCluster,
    unschedulable::UnschedulablePods,
    watches::ClusterChange,
};

/// Time between two checks for reservations whose deadline has passed.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the plugin until a signal.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        listen,
        admin_address,
        lease_namespace,
        config,
        log,
    } = args;
    log.init()?;
    let config = Arc::new(config.load()?);
    let token = shutdown::on_signal()?;
    let client = daemon::client().await?;
    let listener = serve::listen(listen).await?;
    let admin_listener = serve::listen(admin_address).await?;
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("plugin");
    let metrics = Metrics::register(&mut registry);
    let cluster = SharedCluster::new(config.placement.rule());
    let context = Context::new(client, cluster, config, token.clone());
    let unschedulable = UnschedulablePods::default();
    let (send_unplaced, unplaced) = mpsc::unbounded_channel();

    let mut tasks = Tasks::new(token.clone());
    let freed = spawn_watches(&mut tasks, &context, &readiness, &unschedulable);
    tasks.spawn_loop("requeue", {
        let (context, unschedulable) = (context.clone(), unschedulable.clone());
        requeue::run(context, unschedulable, freed, send_unplaced.clone())
    });
    tasks.spawn_loop("preempt", {
        let (context, unschedulable) = (context.clone(), unschedulable.clone());
        preemption::run::run(context, unschedulable, unplaced)
    });
    spawn_upkeep(&mut tasks, &context);
    let lease = LeaseSettings {
        namespace: lease_namespace,
        identity: Identity::of_listener(listener.local_addr()?),
    };
    tasks.spawn("lease", {
        leadership::run::run(context.clone(), lease, token.clone())
    });
    tasks.spawn("admin", {
        let readiness = readiness.clone();
        admin::serve(admin_listener, registry.into(), readiness, token.clone())
    });
    let server = Arc::new(Server {
        context,
        unschedulable,
        unplaced: send_unplaced,
        metrics,
        readiness,
    });
    tasks.spawn(
        "extender",
        serve::plain(listener, token, move |request| {
            let server = server.clone();
            async move { server.answer(request).await }
        }),
    );
    tasks.run().await
}

/// Spawns the tasks that look at the view from time to time.
fn spawn_upkeep(tasks: &mut Tasks, context: &Context) {
    if context.config.placement.rule() == Rule::Tuned {
        tasks.spawn_loop("tune", tuning::run(context.cluster.clone()));
    }
    tasks.spawn_loop("expire", expire(context.clone()));
    tasks.spawn_loop("gone-agents", gone_agents::run(context.clone()));
}

/// Spawns the tasks that keep the view up to date; returns the nodes on which something becomes free.
fn spawn_watches(
    tasks: &mut Tasks,
    context: &Context,
    readiness: &Readiness,
    unschedulable: &UnschedulablePods,
) -> mpsc::UnboundedReceiver<String> {
    let (send_freed, freed) = mpsc::unbounded_channel();
    let unschedulable = unschedulable.clone();
    let on_change = move |change: ClusterChange<'_>| match change {
        ClusterChange::Settled(uid) => unschedulable.remove(uid),
        // The receiver lives as long as the process.
        ClusterChange::Freed(node) => drop(send_freed.send(node.to_owned())),
    };
    let view = || (context.client.clone(), context.cluster.clone());
    let latch = |name| readiness.latch(name);

    let (client, cluster) = view();
    let pods = watches::pods(client, cluster, latch("pods"), on_change.clone());
    tasks.spawn_loop("pods", pods);
    let (client, cluster) = view();
    let nodes = watches::gpu_nodes(client, cluster, latch("gpunodes"), on_change.clone());
    tasks.spawn_loop("gpunodes", nodes);
    let (client, cluster) = view();
    let resource = context.config.resource_count_name.clone();
    let nodes = watches::allocatable(client, cluster, resource, latch("nodes"), on_change);
    tasks.spawn_loop("nodes", nodes);
    freed
}

/// Drops reservations whose deadline has passed, and looks after pods that were bound and never seen, for ever.
async fn expire(context: Context) {
    loop {
        tokio::time::sleep(EXPIRE_INTERVAL).await;
        context.cluster.write().expire(context.now());
        check_unseen(&context).await;
    }
}
