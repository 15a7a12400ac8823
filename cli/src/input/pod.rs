//! A pod of a simulation.

use domain::demand::Demand;

/// A pod of a simulation.
#[derive(Clone, Debug)]
pub struct SimulatedPod {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub demand: Demand,
    /// When it arrives, seconds.
    pub arrival: f64,
    /// How long it runs, seconds; `None`: for ever.
    pub lifetime: Option<f64>,
}
