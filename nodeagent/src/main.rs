//! The node agent's process.

use clap::Parser;

// The work is waiting; more threads would only cost memory on nodes with many cores.
#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    nodeagent::run(nodeagent::args::Args::parse()).await
}
