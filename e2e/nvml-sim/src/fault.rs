//! Faults and delays that are ordered for calls to come. No I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code::Code;

/// Faults and delays to come: `control.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The first rule that matches a call is carried out.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Calls since the file was written, by name, and all of them under `*`.
    #[serde(default)]
    pub seen: BTreeMap<String, u64>,
}

/// What to do to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name of the function, `*` for any.
    pub call: String,
    /// Only on a GPU of this index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<usize>,
    /// From the n-th such call on, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// How often; absent: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The fault.
    pub action: Action,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Return this code and do nothing.
    Code(Code),
    /// Wait so many milliseconds, then do it.
    DelayMs(u64),
    /// Never return.
    Hang,
    /// End the calling process before the call has an effect.
    KillBefore,
    /// End it after.
    KillAfter,
    /// `nvmlDeviceSetMigMode` succeeds with this activation status: only the pending mode changes. Else no fault.
    Activation(Code),
}

impl Control {
    /// Counts a call; the action of the first rule that matches it, which is used up by one.
    pub fn count(&mut self, call: &str, gpu: Option<usize>) -> Option<Action> {
        for name in [call, "*"] {
            *self.seen.entry(name.to_owned()).or_default() += 1;
        }
        let seen = &self.seen;
        let rule = self.rules.iter_mut().find(|rule| {
            let is_due = |nth| seen.get(&rule.call).is_some_and(|count| *count >= nth);
            (rule.call == "*" || rule.call == call)
                && rule.gpu.is_none_or(|wanted| gpu == Some(wanted))
                && rule.nth.is_none_or(is_due)
                && rule.times != Some(0)
        })?;
        rule.times = rule.times.map(|left| left.saturating_sub(1));
        Some(rule.action)
    }
}
