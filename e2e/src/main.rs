//! The command for the test cluster: up, down, kubectl, demo, bench, chaos.
#![allow(clippy::print_stdout, reason = "a command that prints")]

mod bench;
mod chaos;
mod demo;

use std::{
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use e2e::{cluster::Cluster, state_dir, table};

/// A real control plane and kubelet on this machine, with simulated GPUs.
#[derive(Parser)]
struct Args {
    /// The state directory.
    #[arg(long, global = true, default_value_os_t = state_dir::default_dir())]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up a control plane and one real node, without Tessera.
    Up,
    /// Bring up the cluster with Tessera, apply the examples, and show which pod has what.
    Demo,
    /// Measure how long pods with and without GPU take to start.
    Bench,
    /// Create random pods, disturb random parts, and check what must hold.
    Chaos {
        /// How long, in seconds.
        #[arg(long, default_value_t = 120)]
        duration: u64,
        /// Seed of the random choices.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Show which pod has what.
    Show,
    /// Take the cluster down and remove every trace of it.
    Down,
    /// Run kubectl as cluster admin.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Arguments of kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    daemon::install_crypto();
    let Args { dir, command } = Args::parse();
    match command {
        Command::Up => {
            let started = Instant::now();
            let cluster = Cluster::up(&dir, "real", "").await?;
            println!(
                "node {} is ready after {:.1} s",
                cluster.node,
                started.elapsed().as_secs_f64()
            );
        }
        Command::Demo => demo::run(&dir).await?,
        Command::Bench => bench::run(&dir).await?,
        Command::Chaos { duration, seed } => {
            chaos::run(&dir, Duration::from_secs(duration), seed).await?;
        }
        Command::Show => {
            let cluster = Cluster::attach(&dir).await?;
            println!("{}", table::table(&table::rows(cluster.client()).await?));
        }
        Command::Down => {
            e2e::teardown::down(&dir).await?;
            let left = e2e::leftovers::find(&dir);
            anyhow::ensure!(left.is_empty(), "left on the machine: {}", left.join("; "));
        }
        Command::Kubectl { args } => {
            let status = Cluster::attach(&dir)
                .await?
                .kubectl_command()
                .args(args)
                .status()?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
    }
    Ok(ExitCode::SUCCESS)
}
