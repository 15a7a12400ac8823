//! The node's GPUs: what is on them, who has it, what to do next, and what their faults mean. Pure.

pub mod claims;
pub mod health;
pub mod instances;
pub mod retry;
