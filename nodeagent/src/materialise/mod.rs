//! The one thread that owns NVML: it carries out the actions that `gpus` decides on, one at a time.
//!
//! Others talk to it through [`thread::NvmlThread`]: they hand in pods and wanted modes, and read the published
//! inventory. A call of NVML that hangs blocks this thread and nobody else: every caller waits with a limit, and
//! after [`thread::NVML_HANG_TIMEOUT`] all GPUs are published as unhealthy until the call returns.
//!
//! | file | concern |
//! | --- | --- |
//! | `thread`, `command`, `settings` | the handle, and what goes through it |
//! | `worker` | the loop |
//! | `survey`, `schedule`, `faults` | what is read from NVML: surveys and faults |
//! | `requests` | containers that wait for their devices |
//! | `actions`, `create`, `destroy`, `mode`, `reset` | how each action is carried out, and what happens when it fails |
//! | `publish` | the inventory, Events and logs |
//! | `journal`, `journal_format` | the journal on disk |
//! | `proc` | the host's processes |

mod actions;
mod command;
mod create;
mod destroy;
mod error;
mod faults;
pub mod journal;
mod journal_format;
mod mode;
mod pause;
mod proc;
mod publish;
mod requests;
mod reset;
mod schedule;
pub mod settings;
mod survey;
pub mod thread;
mod worker;
