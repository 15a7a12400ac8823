//! The scheduler plugin's process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    plugin::run(plugin::args::Args::parse()).await
}
