//! The hollow kubelet as a process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::install_crypto();
    e2e::hollow::run(e2e::hollow::Args::parse()).await
}
