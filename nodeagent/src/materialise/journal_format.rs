//! The format of the journal: one JSON record per line, after the CRC-32 of the record in hex.
//!
//! A torn last line is the normal trace of a crash; any other bad line is reported and skipped. Records of older
//! versions are read.

use serde::{Deserialize, Serialize};

use crate::gpus::record::{ContainerRef, JournalEntry};

/// Version of the record format: 2 added `complete` and `bound`.
pub(super) const VERSION: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(super) enum Record {
    /// First line of a file.
    Header {
        version: u32,
        /// Generations below this were used.
        #[serde(default)]
        next: u64,
    },
    /// An instance is about to be created.
    Intent(JournalEntry),
    /// The GPU instance exists.
    Made { generation: u64, gpu_instance: u32 },
    /// The compute instance exists.
    Complete {
        generation: u64,
        compute_instance: u32,
    },
    /// A container has it now.
    Bound { generation: u64, to: ContainerRef },
    /// It is gone or was not created.
    Released { generation: u64 },
}

/// A line that was skipped.
#[derive(Debug)]
pub struct BadLine {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineError,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line does not begin with a checksum.
    #[error("no checksum")]
    NoChecksum,
    /// The checksum is not that of the record.
    #[error("checksum does not match")]
    WrongChecksum,
    /// The record cannot be parsed.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What a journal holds.
#[derive(Debug)]
pub(super) struct Replay {
    /// Entries of instances that were not released.
    pub(super) entries: Vec<JournalEntry>,
    /// The next generation.
    pub(super) next: u64,
    /// The lines that were skipped.
    pub(super) bad_lines: Vec<BadLine>,
}

/// The journal has a version that this agent does not know.
#[derive(Debug)]
pub(super) struct UnknownVersion(pub(super) u32);

/// Applies a record to the entries.
pub(super) fn apply(entries: &mut Vec<JournalEntry>, record: Record) {
    fn find(entries: &mut [JournalEntry], generation: u64) -> Option<&mut JournalEntry> {
        entries.iter_mut().find(|e| e.generation == generation)
    }
    match record {
        Record::Header { .. } => {}
        Record::Intent(entry) => {
            entries.retain(|known| known.generation != entry.generation);
            entries.push(entry);
        }
        Record::Made {
            generation,
            gpu_instance,
        } => {
            if let Some(entry) = find(entries, generation) {
                entry.gpu_instance = Some(gpu_instance);
            }
        }
        Record::Complete {
            generation,
            compute_instance,
        } => {
            if let Some(entry) = find(entries, generation) {
                entry.compute_instance = Some(compute_instance);
            }
        }
        Record::Bound { generation, to } => {
            if let Some(entry) = find(entries, generation) {
                entry.bound = Some(to);
            }
        }
        Record::Released { generation } => entries.retain(|e| e.generation != generation),
    }
}

/// A record as a line of the file.
pub(super) fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

fn read(line: &str) -> Result<Record, LineError> {
    let (sum, json) = line.split_once(' ').ok_or(LineError::NoChecksum)?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| LineError::NoChecksum)?;
    if sum != crc32fast::hash(json.as_bytes()) {
        return Err(LineError::WrongChecksum);
    }
    Ok(serde_json::from_str(json)?)
}

/// Reads a whole journal.
pub(super) fn replay(text: &str) -> Result<Replay, UnknownVersion> {
    let mut replay = Replay {
        entries: vec![],
        next: 1,
        bad_lines: vec![],
    };
    let torn = !text.ends_with('\n');
    let lines: Vec<_> = text.lines().collect();
    for (at, text) in lines.iter().enumerate() {
        let record = match read(text) {
            Ok(record) => record,
            Err(_) if torn && at + 1 == lines.len() => continue,
            Err(problem) => {
                let line = at + 1;
                replay.bad_lines.push(BadLine { line, problem });
                continue;
            }
        };
        match &record {
            Record::Header { version, .. } if !(1..=VERSION).contains(version) => {
                return Err(UnknownVersion(*version));
            }
            Record::Header { next, .. } => replay.next = replay.next.max(*next),
            Record::Intent(entry) => replay.next = replay.next.max(entry.generation + 1),
            _ => {}
        }
        apply(&mut replay.entries, record);
    }
    Ok(replay)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries, the next generation and bad lines.
    fn sizes(replay: &Replay) -> (usize, u64, usize) {
        (replay.entries.len(), replay.next, replay.bad_lines.len())
    }

    #[test]
    fn a_torn_last_line_is_normal_and_a_bad_line_is_reported_and_skipped() {
        let good = line(&Record::Intent(JournalEntry {
            generation: 7,
            gpu: "GPU-1".into(),
            profile_id: 19,
            start: 6,
            size: 1,
            gpu_instance: None,
            compute_instance: None,
            bound: None,
        }));
        let made = line(&Record::Made {
            generation: 7,
            gpu_instance: 13,
        });
        for cut in 0..made.len() {
            let read = replay(&format!("{good}{}", &made[..cut])).unwrap();
            assert_eq!(sizes(&read), (1, 8, 0), "cut at {cut}");
        }
        let read = replay(&format!("junk\n00000000 {{}}\n{good}{made}")).unwrap();
        assert_eq!(read.entries[0].gpu_instance, Some(13));
        let bad_lines = read.bad_lines.iter().map(|bad| bad.line);
        assert_eq!(bad_lines.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_journal_of_version_1_is_read() {
        let json = |text: &str| format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()));
        let text = [
            r#"{"op":"header","version":1}"#,
            r#"{"op":"intent","generation":7,"gpu":"GPU-1","profile_id":19,"start":6,"size":1}"#,
            r#"{"op":"made","generation":7,"gpu_instance":13}"#,
        ]
        .map(json)
        .concat();
        let read = replay(&text).unwrap();
        assert_eq!(sizes(&read), (1, 8, 0));
        assert_eq!(read.entries[0].gpu_instance, Some(13));
    }
}
