//! The command line.

use std::path::PathBuf;

use daemon::args::ConfigArgs;
use domain::rule::Rule;

/// Questions about GPU placement.
#[derive(Debug, clap::Parser)]
#[command(name = "kubectl-tessera", bin_name = "kubectl tessera", version)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Where pods would be placed, and which would stay pending.
    Simulate(Simulate),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Simulate {
    /// The GPUs: a file with the output of `kubectl get gpunodes -o yaml`, or a list such as "100 x a100-80gb, 8 x a30
    /// hami-core".
    #[arg(long, value_name = "FILE|LIST")]
    pub(crate) nodes: String,
    /// The pods: a file with manifests (pods, deployments, jobs, ...; YAML or JSON), or with a trace (CSV with the columns
    /// arrival and lifetime, in seconds, and gpu, gpumem, gpumem-percentage, gpucores or name); - is the standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) pods: PathBuf,
    /// Placement rule, instead of the configuration's: demand, tuned, fixed, or a baseline.
    #[arg(long)]
    pub(crate) policy: Option<Rule>,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Writes utilisation and acceptance over time as an SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// GPUs per node, where the nodes are a list.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) gpus_per_node: u32,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        super::Args::command().debug_assert();
    }
}
