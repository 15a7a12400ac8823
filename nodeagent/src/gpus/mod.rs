//! The GPUs of this node: what is on them, who has it, what to do next, and what their faults mean. Pure.
//!
//! | file | concern |
//! | --- | --- |
//! | `state`, `instance`, `claims`, `record`, `modes` | what is known |
//! | `takeover` | how a survey and the list of pods change it |
//! | `slot_actions`, `blocked` | what a container's slot needs, or what keeps it from being available |
//! | `next_action`, `claim_actions`, `gpu_actions`, `mode_actions` | what to do next |
//! | `backoff`, `retry` | when what failed is tried again, and pods given up |
//! | `health` | what a fault means |
//! | `inventory`, `event` | what the agent publishes and reports |

pub(crate) mod action;
pub mod backoff;
pub mod blocked;
mod claim_actions;
pub mod claims;
pub mod clock;
pub mod event;
mod gpu_actions;
pub mod health;
pub mod instance;
pub mod inventory;
mod mode_actions;
pub mod modes;
pub(crate) mod next_action;
pub mod record;
pub mod retry;
mod slot_actions;
pub mod state;
mod takeover;
#[cfg(test)]
pub(crate) mod testing;
