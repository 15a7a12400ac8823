//! Flags of the scheduler plugin.

use std::net::SocketAddr;

use daemon::args::{ConfigArgs, LogArgs};

/// Schedules pods onto GPUs, as an extender of kube-scheduler.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Address of the extender, for the kube-scheduler in the same pod.
    #[arg(long, env, default_value = "127.0.0.1:8888")]
    pub listen: SocketAddr,
    /// Address of `/live`, `/ready` and `/metrics`, plain HTTP.
    #[arg(long, env = "TESSERA_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,
    /// Namespace of the Lease `tessera-plugin`, whose holder binds.
    #[arg(
        long,
        env = "TESSERA_LEASE_NAMESPACE",
        default_value = "tessera-system"
    )]
    pub lease_namespace: String,
    /// The settings that all daemons share.
    #[command(flatten)]
    pub config: ConfigArgs,
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
