//! `kubectl tessera simulate`: would these pods fit, and where? Offline, by the code that the scheduler runs.

mod engine;
pub mod input;
mod plot;
pub mod simulate;

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use daemon::args::ConfigArgs;
use domain::rule::Rule;

/// Questions about GPU placement.
#[derive(Debug, clap::Parser)]
#[command(name = "kubectl-tessera", bin_name = "kubectl tessera", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Where pods would land, and what would stay pending.
    Simulate(Simulate),
}

/// What to simulate.
#[derive(Debug, clap::Args)]
pub struct Simulate {
    /// The GPUs: a file with the output of `kubectl get gpunodes -o yaml`, or a list such as "100 x a100-80gb, 8 x a30
    /// hami-core".
    #[arg(long, value_name = "FILE|LIST")]
    nodes: String,
    /// The pods: a file with manifests (pods, deployments, jobs, ...; YAML or JSON), or with a trace (CSV with the columns
    /// arrival and lifetime, in seconds, and gpu, gpumem, gpumem-percentage, gpucores or name); - is the standard input.
    #[arg(long, value_name = "FILE")]
    pods: PathBuf,
    /// Rule of placement, instead of the configuration's: demand, tuned, fixed, or a baseline.
    #[arg(long)]
    policy: Option<Rule>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Writes utilisation and acceptance over time as an SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// GPUs of a node, where the nodes are a list.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    gpus_per_node: u32,
    /// Settings of the cluster.
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Args {
    /// Does what was asked, and prints it.
    pub fn run(self) -> anyhow::Result<()> {
        let Command::Simulate(args) = self.command;
        let config = args.config.load()?;
        let rule = args.policy.unwrap_or_else(|| config.placement.rule());
        let nodes = input::nodes(&args.nodes, args.gpus_per_node)?;
        let text = if args.pods.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin()).context("cannot read the standard input")?
        } else {
            std::fs::read_to_string(&args.pods)
                .with_context(|| format!("cannot read {}", args.pods.display()))?
        };
        let pods = input::pods(&text, &config)
            .with_context(|| format!("{} is refused", args.pods.display()))?;
        let report = simulate::run(&nodes, &pods, rule, &config)?;
        if let Some(path) = &args.plot {
            let svg = plot::svg(&report.series)?;
            std::fs::write(path, svg)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let text = match args.output {
            Output::Table => report.to_string(),
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write the answer")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        super::Args::command().debug_assert();
    }
}
