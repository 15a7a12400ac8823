//! Preemption by placement: which pods give way to a pod that found no node.
//!
//! kube-scheduler's own preemption (`framework/preemption`) looks for victims with its own filters only,
//! and asks an extender about the nodes where it found some. Only Tessera knows that GPU memory is
//! scarce, so kube-scheduler finds no victims and does not ask. It asks where CPU or memory is scarce
//! too, by the verb `preempt` ([`verb`]). The common case is carried out by the plugin itself: [`run`]
//! selects victims ([`select`]) and evicts them with the Eviction API ([`evict`]), which respects
//! disruption budgets.
//!
//! Where no pod has a lower priority, one pod that allows it (`nvidia.com/allow-restart`) is restarted
//! elsewhere, if that alone makes the waiting pod fit ([`relocate`]), not more often than [`limits`] allows.
//!
//! Nobody gives way, and nothing is reserved, but on nodes that kube-scheduler offered for the pod in its last
//! attempt: these passed its other filters (selectors, affinity, taints, spread), and only Tessera refused them.

mod evict;
mod limits;
mod relocate;
pub(crate) mod run;
pub(crate) mod select;
pub(crate) mod verb;
