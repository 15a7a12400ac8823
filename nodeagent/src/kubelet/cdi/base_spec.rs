//! The spec that NVIDIA's container toolkit generated: where the driver's libraries and hooks come from.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The edits that hold for every device, from the first of these specs that can be read; none without a spec.
pub(crate) fn common_edits(specs: &[PathBuf]) -> Map<String, Value> {
    specs.iter().find_map(|path| read(path)).unwrap_or_default()
}

fn read(path: &Path) -> Option<Map<String, Value>> {
    let text = std::fs::read_to_string(path).ok()?;
    match serde_saphyr::from_str::<Value>(&text) {
        Ok(spec) => spec.get("containerEdits")?.as_object().cloned(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "Skipped an unreadable CDI spec");
            None
        }
    }
}
