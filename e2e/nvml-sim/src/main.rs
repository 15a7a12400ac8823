//! Makes and shows simulated cards, and orders faults.
#![allow(clippy::print_stdout, reason = "a command that prints")]

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand, ValueEnum};
use nvml_sim::{
    GpuSpec,
    card::Card,
    event::{Event, XID},
    fault::{Control, Rule},
    store::Store,
};

/// Simulated NVIDIA cards in a state directory.
#[derive(Parser)]
struct Args {
    /// The state directory.
    #[arg(
        long,
        env = "NVML_SIM_DIR",
        default_value = "/var/lib/nvml-sim",
        global = true
    )]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the cards of a node.
    Create {
        /// Model: `a100-80gb`, `h100-80gb`, `a30`, … or a key of domain/models.json.
        #[arg(long)]
        gpu: String,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: usize,
        /// With MIG mode on.
        #[arg(long)]
        mig: bool,
        /// What the UUIDs are made of.
        #[arg(long, default_value = "node")]
        seed: String,
        /// Milliseconds that making or removing an instance takes.
        #[arg(long, default_value_t = 0)]
        latency_ms: u64,
    },
    /// Show the cards, as JSON.
    Show,
    /// Reboot the node.
    Reboot,
    /// Reset a card that nobody has open: its instances are lost, its pending MIG mode takes effect.
    Reset {
        /// NVML index or UUID.
        #[arg(long)]
        gpu: String,
    },
    /// Stand in for nvidia-smi, as far as it resets a card.
    NvidiaSmi {
        /// Reset the card.
        #[arg(short = 'r', long, required = true)]
        gpu_reset: bool,
        /// NVML index or UUID.
        #[arg(short = 'i', long)]
        id: String,
    },
    /// Report an XID of a card.
    Xid {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
        /// The XID.
        #[arg(long)]
        xid: u64,
        /// Id of the GPU instance that it is attributed to.
        #[arg(long)]
        gi: Option<u32>,
        /// Id of the compute instance that it is attributed to.
        #[arg(long, requires = "gi")]
        ci: Option<u32>,
    },
    /// An uncorrectable memory error: an event, a pending remapping, and the advice to reset.
    Ecc {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Let a card fall off the bus.
    Lose {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Make a card healthy again; its instances live on.
    Recover {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Set what a card says that it needs.
    Recovery {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
        /// What it needs.
        #[arg(long)]
        action: RecoveryAction,
    },
    /// Make an instance as another tool would.
    Foreign {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
        /// Name of the profile.
        #[arg(long)]
        profile: String,
        /// First memory slice.
        #[arg(long)]
        start: u8,
    },
    /// Order faults: rules as JSON, e.g. `{"call":"nvmlGpuInstanceDestroy","times":2,"action":{"code":19}}`; none: no faults.
    Fault {
        /// Rules.
        rules: Vec<String>,
    },
}

/// `nvmlDeviceGpuRecoveryAction_t`.
#[derive(Clone, Copy, ValueEnum)]
enum RecoveryAction {
    None,
    Reset,
    Reboot,
    DrainP2p,
    DrainAndReset,
}

fn main() -> anyhow::Result<()> {
    let Args { dir, command } = Args::parse();
    let store = Store::new(&dir);
    match command {
        Command::Create {
            gpu,
            count,
            mig,
            seed,
            latency_ms,
        } => {
            let spec = GpuSpec {
                model: gpu,
                mig,
                mirrored: false,
            };
            nvml_sim::provision(&dir, &seed, &vec![spec; count])?;
            store.with(|state| state.latency_ms = latency_ms)?;
        }
        Command::Show => println!("{}", serde_json::to_string_pretty(&store.snapshot()?)?),
        Command::Reboot => nvml_sim::reboot(&dir)?,
        Command::Reset { gpu } => nvml_sim::reset(&dir, &gpu)?,
        Command::NvidiaSmi { id, .. } => {
            nvml_sim::reset(&dir, &id)?;
            println!("GPU {id} was successfully reset.");
        }
        Command::Xid { gpu, xid, gi, ci } => store.raise(Event {
            gpu,
            kind: XID,
            data: xid,
            gi,
            ci,
            ..Event::default()
        })?,
        Command::Ecc { gpu } => store.double_bit_error(gpu)?,
        Command::Lose { gpu } => {
            store.with(|state| state.card(gpu).map(|card| card.lost = true))??;
        }
        Command::Recover { gpu } => store.with(|state| state.card(gpu).map(Card::recover))??,
        Command::Recovery { gpu, action } => {
            store.with(|state| {
                state
                    .card(gpu)
                    .map(|card| card.recovery_action = action as u32)
            })??;
        }
        Command::Foreign {
            gpu,
            profile,
            start,
        } => store.with(|state| {
            let card = state.card(gpu)?;
            let known = card.model().profiles.iter().find(|p| p.name == profile);
            let known = known.ok_or(anyhow!("no profile {profile}"))?;
            card.create_at(known.id, start, known.size)
                .map(|_| ())
                .map_err(|code| anyhow!("NVML says {code}"))
        })??,
        Command::Fault { rules } => {
            let rules = rules
                .iter()
                .map(|text| {
                    serde_json::from_str::<Rule>(text).with_context(|| format!("{text} is no rule"))
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            let control = Control {
                rules,
                ..Control::default()
            };
            store.control((!control.rules.is_empty()).then_some(&control))?;
        }
    }
    Ok(())
}
