//! The report as a table and sentences for people.

use std::fmt;

use comfy_table::{Table, presets};

use super::report::{Fate, Report, Summary};

/// The table has a line per pod up to so many; beyond that the sums tell more.
const MAX_LISTED: usize = 200;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pods.len() <= MAX_LISTED {
            writeln!(f, "{}", table(&self.pods))?;
        }
        write_pending(f, &self.pods)?;
        let Summary {
            pods,
            placed,
            accepted_at_once,
            mean_wait_seconds,
            longest_wait_seconds,
            mean_utilisation,
            utilisation,
            ..
        } = self.summary;
        writeln!(
            f,
            "\n{}: {placed} of {pods} pods placed, {accepted_at_once:.1} % of the requested GPUs on arrival; \
             wait {mean_wait_seconds:.0} s mean, {longest_wait_seconds:.0} s longest; \
             GPUs {mean_utilisation:.1} % in use on average, {utilisation:.1} % at the end",
            self.policy,
        )
    }
}

fn table(pods: &[Fate]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["POD", "NODE", "GPU", "PROFILE", "START", "MIB", "WAIT"]);
    for pod in pods {
        let wait = pod.wait_seconds;
        let wait = wait.map_or_else(String::new, |wait| format!("{wait:.0}s"));
        for device in &pod.devices {
            let start = device.start;
            table.add_row([
                pod.name.clone(),
                pod.node.clone().unwrap_or_default(),
                device.gpu.to_string(),
                device.profile.clone(),
                start.map_or_else(String::new, |start| start.to_string()),
                device.memory_mib.to_string(),
                wait.clone(),
            ]);
        }
        if pod.node.is_none() {
            table.add_row([pod.name.as_str(), "<pending>", "", "", "", "", ""]);
        }
    }
    table
}

/// One paragraph per reason, with the first of the pods that are pending for it.
fn write_pending(f: &mut fmt::Formatter<'_>, pods: &[Fate]) -> fmt::Result {
    let mut by_reason: Vec<(&str, &[String], Vec<&str>)> = Vec::new();
    for pod in pods.iter().filter(|pod| pod.node.is_none()) {
        let reason = pod.reason.as_deref().unwrap_or("does not fit by this rule");
        match by_reason.iter_mut().find(|(known, ..)| *known == reason) {
            Some((.., names)) => names.push(&pod.name),
            None => by_reason.push((reason, &pod.restart, vec![&pod.name])),
        }
    }
    for (reason, restart, names) in by_reason {
        let others = names.len() - 1;
        let more = if others > 0 {
            format!(" and {others} more")
        } else {
            String::new()
        };
        writeln!(f, "\n{}{more} pending: {reason}", names[0])?;
        if !restart.is_empty() {
            let restart = restart.join(", ");
            writeln!(f, "  {} would fit after a restart of {restart}", names[0])?;
        }
    }
    Ok(())
}
