//! A rule that was broken.

use std::fmt;

use super::look::Place;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// Two pods claim the same slices.
    Shared { pods: [String; 2], gpu: String },
    /// A pod runs without an instance that it claims.
    Missing { pod: String, place: Place },
    /// What is at a running pod's place is not what it claims.
    Other {
        pod: String,
        place: Place,
        found: String,
    },
    /// A running pod's instance was exchanged.
    Exchanged { pod: String, place: Place },
    /// A running pod's container was restarted.
    Restarted { pod: String },
    /// A container was created with devices that are not its pod's instances.
    Devices { pod: String, found: String },
    /// No pod has claimed an instance of ours for too long.
    Unclaimed { place: Place },
    /// The instance that somebody else made is not as it was.
    Foreign,
    /// An instance that exists is not published.
    Unpublished { place: Place },
    /// An instance is published that does not exist.
    Ghost { place: Place },
    /// A daemon ended although nobody ended it.
    Ended { process: String },
    /// Something is left after everything was deleted.
    Left { what: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { pods: [a, b], gpu } => write!(f, "{a} and {b} share slices of {gpu}"),
            Self::Missing { pod, place } => {
                write!(f, "{pod} is running without its instance at {place}")
            }
            Self::Other { pod, place, found } => {
                write!(
                    f,
                    "{pod} is running with {found} at {place}, which it does not claim"
                )
            }
            Self::Exchanged { pod, place } => {
                write!(
                    f,
                    "{pod} is running, but its instance at {place} was replaced"
                )
            }
            Self::Restarted { pod } => write!(f, "a container of {pod} was restarted"),
            Self::Devices { pod, found } => {
                write!(
                    f,
                    "a container of {pod} was created with {found} instead of its instances"
                )
            }
            Self::Unclaimed { place } => write!(f, "no pod claims the instance at {place}"),
            Self::Foreign => write!(f, "the foreign instance is gone or was replaced"),
            Self::Unpublished { place } => {
                write!(f, "an instance at {place} exists but is not published")
            }
            Self::Ghost { place } => {
                write!(f, "an instance at {place} is published but does not exist")
            }
            Self::Ended { process } => write!(f, "{process} exited by itself"),
            Self::Left { what } => write!(f, "left at the end: {what}"),
        }
    }
}
