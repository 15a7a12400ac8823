//! The mutating admission webhook as a process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    webhook::run(webhook::Args::parse()).await
}
