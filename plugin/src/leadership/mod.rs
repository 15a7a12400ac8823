//! Which of several plugins binds: the holder of a Lease, and none that only believes to hold it.
//!
//! ```text
//! binding ──► term ◄── run (takes, renews, releases) ──► lease (the object, by compare-and-swap)
//!                       └──► take_over ──► binding::fence
//! ```
//!
//! A holder may be frozen between its last look at the clock and its request, and a request may be under way for
//! any time. So the time of the Lease is not all that keeps two plugins apart:
//!
//! 1. A binding names the version of the pod that was read, and the API server refuses it for any other.
//! 2. Before it is sent, *after* the pod was read, the term in which it was planned must still hold.
//! 3. A plugin that takes the Lease from another that did not release it waits until that one's term is over,
//!    then changes every pod that has no node (its condition says so), and reads all claims. Only then its own
//!    term begins.
//!
//! A version that the former holder read is older than the end of its term (2), hence than the change (3), hence void
//! (1), unless its binding was carried out before: then the change has found it. All that is assumed is that a clock
//! does not run a third slower than another.
//!
//! The Lease is taken for the first binding and released when none came for a while: binding costs no further write,
//! and the plugin beside the kube-scheduler that leads now finds it free.

pub(crate) mod identity;
mod lease;
pub(crate) mod run;
mod take_over;
pub(crate) mod term;
