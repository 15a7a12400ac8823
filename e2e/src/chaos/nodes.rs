//! The nodes of a run.

/// Nodes with MIG GPUs.
pub(super) const NODES: [&str; 2] = [REAL, HOLLOW];

pub(super) const REAL: &str = "real";

pub(super) const HOLLOW: &str = "hollow-h100";

/// Where the foreign instance is: node, index of the GPU, first slice.
pub(super) const FOREIGN: (&str, usize, u8) = (HOLLOW, 7, 6);

/// Whether the foreign instance is on this GPU.
pub(super) fn is_foreign(node: &str, gpu: usize) -> bool {
    (node, gpu) == (FOREIGN.0, FOREIGN.1)
}
