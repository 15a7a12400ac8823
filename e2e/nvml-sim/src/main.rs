//! Creates and shows simulated GPUs, and injects faults.
#![allow(clippy::print_stdout, reason = "a command that prints")]

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand, ValueEnum};
use nvml_sim::{
    GpuSpec,
    event::{Event, XID},
    fault::{Control, Rule},
    gpu::Gpu,
    store::Store,
};

/// Simulated NVIDIA GPUs in a state directory.
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
    /// Create the GPUs of a node.
    Create {
        /// Model: `a100-80gb`, `h100-80gb`, `a30`, … or a key of domain/models.json.
        #[arg(long)]
        gpu: String,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: usize,
        /// Start in MIG mode.
        #[arg(long)]
        mig: bool,
        /// Seed of the UUIDs.
        #[arg(long, default_value = "node")]
        seed: String,
        /// Milliseconds that creating or destroying an instance takes.
        #[arg(long, default_value_t = 0)]
        latency_ms: u64,
    },
    /// Show the GPUs, as JSON.
    Show,
    /// Reboot the node.
    Reboot,
    /// Reset a GPU that nobody has open: its instances are lost, its pending MIG mode takes effect.
    Reset {
        /// NVML index or UUID.
        #[arg(long)]
        gpu: String,
    },
    /// Stand in for nvidia-smi, as far as it resets a GPU.
    NvidiaSmi {
        /// Reset the GPU.
        #[arg(short = 'r', long, required = true)]
        gpu_reset: bool,
        /// NVML index or UUID.
        #[arg(short = 'i', long)]
        id: String,
    },
    /// Report an XID error of a GPU.
    Xid {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
        /// XID.
        #[arg(long)]
        xid: u64,
        /// Id of the GPU instance that caused it.
        #[arg(long)]
        gi: Option<u32>,
        /// Id of the compute instance that caused it.
        #[arg(long, requires = "gi")]
        ci: Option<u32>,
    },
    /// Report an uncorrectable memory error: an event, a pending row remapping, and the recovery action `reset`.
    Ecc {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Make a GPU fall off the bus.
    Lose {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Make a GPU healthy again; its instances live on.
    Recover {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
    },
    /// Set the recovery action that a GPU asks for.
    Recovery {
        /// NVML index.
        #[arg(long)]
        gpu: usize,
        /// Recovery action.
        #[arg(long)]
        action: RecoveryAction,
    },
    /// Create an instance as another tool would.
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
    /// Inject faults: rules as JSON, e.g. `{"call":"nvmlGpuInstanceDestroy","times":2,"action":{"code":19}}`; without rules: clear them.
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
            store.with(|state| state.gpu(gpu).map(|gpu| gpu.lost = true))??;
        }
        Command::Recover { gpu } => store.with(|state| state.gpu(gpu).map(Gpu::recover))??,
        Command::Recovery { gpu, action } => {
            store.with(|state| {
                state
                    .gpu(gpu)
                    .map(|gpu| gpu.recovery_action = action as u32)
            })??;
        }
        Command::Foreign {
            gpu,
            profile,
            start,
        } => create_foreign(&store, gpu, &profile, start)?,
        Command::Fault { rules } => inject(&store, &rules)?,
    }
    Ok(())
}

/// Creates a GPU instance that no agent knows of.
fn create_foreign(store: &Store, index: usize, profile: &str, start: u8) -> anyhow::Result<()> {
    store.with(|state| {
        let gpu = state.gpu(index)?;
        let known = gpu.model().profiles.iter().find(|p| p.name == profile);
        let known = known.ok_or_else(|| anyhow!("GPU {index} has no profile {profile}"))?;
        gpu.create_at(known.id, start, known.size)
            .map(drop)
            .map_err(|code| anyhow!("NVML returned {code}"))
    })?
}

/// Replaces the faults that are ordered by these rules.
fn inject(store: &Store, rules: &[String]) -> anyhow::Result<()> {
    let rules = rules
        .iter()
        .map(|text| {
            serde_json::from_str::<Rule>(text).with_context(|| format!("{text} is not a rule"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let control = Control {
        rules,
        ..Control::default()
    };
    Ok(store.control((!control.rules.is_empty()).then_some(&control))?)
}
