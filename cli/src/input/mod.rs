//! What is simulated: nodes and pods, from the files that people have.

mod manifests;
pub mod nodes;
mod objects;
pub mod pod;
pub mod pods;
mod trace;
