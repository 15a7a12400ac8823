//! Why a node cannot take a pod, in words for the pod's scheduling event.

use std::fmt;

use crate::{demand::Memory, mode::VgpuMode};

/// Why a node cannot take a demand: one of a closed list, which names what is scarce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node publishes no GPU.
    NoGpu,
    /// The node's kubelet has no devices: the agent is not registered with it.
    NoAgent,
    /// No GPU is of the type or UUID that the pod's annotations ask for.
    Model,
    /// No GPU works in the mode that the pod insists on.
    Mode(VgpuMode),
    /// Every suitable GPU is about to change to this mode.
    Changing(VgpuMode),
    /// Every suitable GPU is unhealthy.
    Unhealthy,
    /// No GPU or profile is as large as asked.
    TooLarge {
        /// What was asked for.
        asked: Memory,
        /// The most that one device can have here, MiB.
        largest_mib: u64,
    },
    /// No profile has both the memory and the compute asked for.
    Cores {
        /// Percent asked for.
        asked: u32,
    },
    /// Not enough is free now.
    Occupied {
        /// Devices that were asked for, in words: `2 x 3g.40gb`.
        wanted: String,
        /// Enough slices are free, but not side by side where the profile may start: what it needs.
        needs: Option<Needs>,
        /// The largest that would fit now, in words.
        fits: Option<String>,
    },
    /// Neither mode of the node can take it.
    Both(Box<Refusal>, Box<Refusal>),
}

/// Where a profile could be placed on the best GPU, and who is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Slices side by side.
    pub slices: u8,
    /// Where they may start.
    pub starts: Vec<u8>,
    /// The fewest that are in the way of one such place: `namespace/name` of pods; empty where no agent has reported them yet.
    pub blockers: Vec<String>,
}

impl Refusal {
    /// Whether preempting pods would not help, in kube-scheduler's words: unschedulable and unresolvable.
    pub fn is_unresolvable(&self) -> bool {
        match self {
            Self::Occupied { .. } | Self::NoAgent => false,
            Self::Both(mig, hami_core) => mig.is_unresolvable() && hami_core.is_unresolvable(),
            _ => true,
        }
    }
}

/// One sentence; with `{:#}` it also names who is in the way.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpu => f.write_str("node has no GPUs managed by Tessera"),
            Self::NoAgent => f.write_str("the Tessera agent is not registered with kubelet"),
            Self::Model => f.write_str("no GPU matches the pod's type or UUID annotations"),
            Self::Mode(mode) => write!(f, "no GPU in mode {mode}"),
            Self::Changing(to) => write!(f, "GPUs are switching to mode {to}"),
            Self::Unhealthy => f.write_str("GPUs are unhealthy"),
            Self::TooLarge { asked, largest_mib } => {
                match asked {
                    Memory::Whole => f.write_str("no whole GPU is available")?,
                    Memory::Mib(mib) => write!(f, "no GPU has {mib} MiB for one device")?,
                    Memory::Percent(percent) => {
                        write!(
                            f,
                            "no GPU has {percent} percent of its memory for one device"
                        )?;
                    }
                }
                write!(f, ", the largest has {largest_mib} MiB")
            }
            Self::Cores { asked } => {
                write!(f, "no MIG profile has {asked} percent of the GPU's compute")
            }
            Self::Occupied {
                wanted,
                needs,
                fits,
            } => {
                if let Some(needs) = needs {
                    write!(f, "free GPU slices are too fragmented for {wanted}")?;
                    let starts: Vec<String> = needs.starts.iter().map(u8::to_string).collect();
                    let (slices, starts) = (needs.slices, starts.join(" or "));
                    write!(f, ", which needs {slices} slices starting at {starts}")?;
                    if f.alternate() && !needs.blockers.is_empty() {
                        write!(f, ", blocked by {}", needs.blockers.join(", "))?;
                    }
                } else {
                    write!(f, "no free GPU memory for {wanted}")?;
                }
                match fits {
                    Some(fits) => write!(f, " (would fit now: {fits})"),
                    None => f.write_str(" (GPUs are full)"),
                }
            }
            Self::Both(mig, hami_core) if f.alternate() => {
                write!(f, "mig: {mig:#}; hami-core: {hami_core:#}")
            }
            Self::Both(mig, hami_core) => write!(f, "mig: {mig}; hami-core: {hami_core}"),
        }
    }
}
