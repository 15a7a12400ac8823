//! `kubectl tessera simulate`: would these pods fit, and where? Offline, by the code that the scheduler runs.

pub mod args;
mod engine;
pub mod input;
mod plot;
pub mod simulation;

use std::io::Write;

use anyhow::Context;

use crate::{
    args::{Args, Command, Output, Simulate},
    simulation::world,
};

/// Answers the question and prints the answer.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Simulate(args) = args.command;
    simulate(&args)
}

fn simulate(args: &Simulate) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let rule = args.policy.unwrap_or_else(|| config.placement.rule());
    let nodes = input::nodes::read(&args.nodes, args.gpus_per_node)?;
    let text = if args.pods.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("cannot read the standard input")?
    } else {
        std::fs::read_to_string(&args.pods)
            .with_context(|| format!("cannot read {}", args.pods.display()))?
    };
    let pods = input::pods::read(&text, &config)
        .with_context(|| format!("cannot use the pods of {}", args.pods.display()))?;
    let report = world::run(&nodes, &pods, rule, &config)?;
    if let Some(path) = &args.plot {
        let svg = plot::svg(&report.series)?;
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = match args.output {
        Output::Table => report.to_string(),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to the standard output")
}
