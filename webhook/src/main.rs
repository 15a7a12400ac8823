//! The webhook's process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    webhook::run(webhook::args::Args::parse()).await
}
