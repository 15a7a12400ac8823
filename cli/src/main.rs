//! `kubectl tessera`, by kubectl's convention for plugins: a binary of that name on the path.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    cli::run(cli::args::Args::parse())
}
