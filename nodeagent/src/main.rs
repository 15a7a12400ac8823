//! The node agent's process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    nodeagent::run(nodeagent::args::Args::parse()).await
}
