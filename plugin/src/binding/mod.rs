//! Reserve and Bind of the scheduler framework: plan, assume the claim, and one write to the API server.
//!
//! ```text
//! bind ──► pending (which bindings are not over) ◄── settle (what an unclear answer meant, what was never seen)
//!                                                       └──► fence (a pod's bindings that are under way become void)
//! ```

pub(crate) mod bind;
pub(crate) mod fence;
pub(crate) mod pending;
pub(crate) mod settle;
#[cfg(test)]
mod tests;
