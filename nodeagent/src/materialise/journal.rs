//! What this node's agent has made, on disk: intent before NVML is called, identity after, and for whom.
//!
//! One JSON record a line, behind the CRC-32 of the record in hex, appended and flushed to the disk
//! before the next step: `intent` → `made` (GPU instance) → `complete` (compute instance) → `bound` (a pod's
//! container) → `released`. A torn last line is the normal trace of a crash; any other bad line is
//! reported and skipped. Files of older versions are read; an unknown version is refused as a whole: the
//! file was written by a newer agent.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Version of the record format: 2 added `complete` and `bound`.
const VERSION: u32 = 2;
/// Appended records after which the file is written anew with the live entries alone.
const COMPACT_AFTER: u32 = 4_096;

/// A GPU instance of ours that should be or is on a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of this making, never used again: UUIDs and instance ids are.
    pub generation: u64,
    /// UUID of the card.
    pub gpu: String,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// NVML GPU instance id, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// NVML compute instance id, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance: Option<u32>,
    /// Who has or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
}

/// The container that an instance was given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// UID of the pod.
    pub uid: String,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// The container.
    pub container: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum Record {
    /// First line of a file.
    Header {
        version: u32,
        /// Generations below this were given away.
        #[serde(default)]
        next: u64,
    },
    /// About to make it.
    Intent(Entry),
    /// The GPU instance exists.
    Made { generation: u64, gpu_instance: u32 },
    /// The compute instance exists.
    Complete {
        generation: u64,
        compute_instance: u32,
    },
    /// A container has it.
    Bound { generation: u64, to: Bound },
    /// It is gone.
    Released { generation: u64 },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole records; what is behind them is the trace of a write that failed.
    length: u64,
    appended: u32,
    entries: Vec<Entry>,
    next: u64,
}

/// What was wrong with a line that was skipped.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line number, from 1.
    pub line: usize,
    /// In words.
    pub problem: String,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("journal {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was written by a newer agent.
    #[error(
        "journal {path} has version {found}, this agent knows {VERSION}; run the newer agent again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Journal {
    /// Opens or makes the journal; the lines that could not be read come beside it.
    ///
    /// The file is rewritten with the live entries only, by rename, so it never grows for ever.
    pub fn open(path: &Path) -> Result<(Self, Vec<BadLine>), JournalError> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(JournalError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let (entries, next, bad) = replay(&text).map_err(|found| JournalError::Version {
            path: path.to_owned(),
            found,
        })?;
        let (file, length) =
            write_anew(path, &entries, next).map_err(|source| JournalError::Io {
                path: path.to_owned(),
                source,
            })?;
        let journal = Self {
            path: path.to_owned(),
            file,
            length,
            appended: 0,
            entries,
            next,
        };
        Ok((journal, bad))
    }

    /// All live entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Records that an instance is about to be made; its generation.
    pub fn intend(
        &mut self,
        gpu: &str,
        profile_id: u32,
        start: u8,
        size: u8,
    ) -> Result<u64, JournalError> {
        let entry = Entry {
            generation: self.next,
            gpu: gpu.to_owned(),
            profile_id,
            start,
            size,
            gpu_instance: None,
            compute_instance: None,
            bound: None,
        };
        self.append(&Record::Intent(entry.clone()))?;
        self.next += 1;
        let generation = entry.generation;
        self.entries.push(entry);
        Ok(generation)
    }

    /// Records which GPU instance it became.
    pub fn made(&mut self, generation: u64, gpu_instance: u32) -> Result<(), JournalError> {
        self.record(Record::Made {
            generation,
            gpu_instance,
        })
    }

    /// Records that its compute instance exists.
    pub fn complete(&mut self, generation: u64, compute_instance: u32) -> Result<(), JournalError> {
        self.record(Record::Complete {
            generation,
            compute_instance,
        })
    }

    /// Records whose it is now.
    pub fn bound(&mut self, generation: u64, to: Bound) -> Result<(), JournalError> {
        self.record(Record::Bound { generation, to })
    }

    /// Records that it is gone, or never came to be.
    pub fn released(&mut self, generation: u64) -> Result<(), JournalError> {
        self.record(Record::Released { generation })
    }

    fn record(&mut self, record: Record) -> Result<(), JournalError> {
        self.append(&record)?;
        apply(&mut self.entries, record);
        if self.appended >= COMPACT_AFTER {
            (self.file, self.length) = write_anew(&self.path, &self.entries, self.next)
                .map_err(|source| self.failed(source))?;
            self.appended = 0;
        }
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let line = line(record);
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line must not spoil the next one. If even this fails, the next line is lost with it and told as bad.
            let _ = self.file.set_len(self.length);
            return Err(self.failed(source));
        }
        self.length += line.len() as u64;
        self.appended += 1;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> JournalError {
        JournalError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Writes a file with the live entries only and puts it in the place of the old one; the file to append to, and its length.
fn write_anew(path: &Path, entries: &[Entry], next: u64) -> io::Result<(File, u64)> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut fresh = tempfile::NamedTempFile::new_in(directory)?;
    let mut lines = line(&Record::Header {
        version: VERSION,
        next,
    });
    for entry in entries {
        lines += &line(&Record::Intent(entry.clone()));
    }
    fresh.write_all(lines.as_bytes())?;
    fresh.as_file().sync_all()?;
    fresh.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()?;
    let file = OpenOptions::new().append(true).open(path)?;
    Ok((file, lines.len() as u64))
}

/// What a record changes.
fn apply(entries: &mut Vec<Entry>, record: Record) {
    fn find(entries: &mut [Entry], generation: u64) -> Option<&mut Entry> {
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

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

fn read(line: &str) -> Result<Record, String> {
    let (sum, json) = line.split_once(' ').ok_or("no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| "no checksum")?;
    if sum != crc32fast::hash(json.as_bytes()) {
        return Err("checksum does not match".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// Live entries, the next generation and the bad lines; `Err` is an unknown version.
fn replay(text: &str) -> Result<(Vec<Entry>, u64, Vec<BadLine>), u32> {
    let (mut entries, mut next, mut bad) = (Vec::<Entry>::new(), 1, Vec::new());
    let torn = !text.ends_with('\n');
    let lines: Vec<_> = text.lines().collect();
    for (at, text) in lines.iter().enumerate() {
        let record = match read(text) {
            Ok(record) => record,
            Err(_) if torn && at + 1 == lines.len() => continue,
            Err(problem) => {
                bad.push(BadLine {
                    line: at + 1,
                    problem,
                });
                continue;
            }
        };
        match &record {
            Record::Header { version, .. } if !(1..=VERSION).contains(version) => {
                return Err(*version);
            }
            Record::Header { next: known, .. } => next = next.max(*known),
            Record::Intent(entry) => next = next.max(entry.generation + 1),
            _ => {}
        }
        apply(&mut entries, record);
    }
    Ok((entries, next, bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(uid: &str) -> Bound {
        Bound {
            uid: uid.into(),
            pod: format!("n/{uid}"),
            container: "main".into(),
        }
    }

    fn open(path: &Path) -> (Journal, Vec<BadLine>) {
        Journal::open(path).unwrap()
    }

    #[test]
    fn what_was_made_and_not_released_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/journal");
        let (mut journal, bad) = open(&path);
        assert_eq!(bad, []);
        let a = journal.intend("GPU-1", 19, 6, 1).unwrap();
        journal.made(a, 13).unwrap();
        journal.complete(a, 0).unwrap();
        journal.bound(a, bound("b")).unwrap();
        journal.bound(a, bound("a")).unwrap();
        let b = journal.intend("GPU-1", 19, 5, 1).unwrap();
        let c = journal.intend("GPU-1", 9, 0, 4).unwrap();
        journal.released(c).unwrap();
        let before = journal.entries().to_vec();
        drop(journal);
        let (mut journal, bad) = open(&path);
        assert_eq!(bad, []);
        assert_eq!(journal.entries(), before);
        assert_eq!(journal.entries()[0].gpu_instance, Some(13));
        assert_eq!(journal.entries()[0].compute_instance, Some(0));
        assert_eq!(journal.entries()[0].bound.as_ref(), Some(&bound("a")));
        assert_eq!(journal.entries()[1].generation, b);
        assert!(
            journal.intend("GPU-1", 19, 4, 1).unwrap() > b,
            "generations are never used again"
        );
    }

    #[test]
    fn a_torn_last_line_is_normal_and_a_bad_line_is_reported_and_skipped() {
        let good = line(&Record::Intent(Entry {
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
            let (entries, next, bad) = replay(&format!("{good}{}", &made[..cut])).unwrap();
            assert_eq!((entries.len(), next, bad.len()), (1, 8, 0), "cut at {cut}");
        }
        let (entries, _, bad) = replay(&format!("junk\n00000000 {{}}\n{good}{made}")).unwrap();
        assert_eq!(entries[0].gpu_instance, Some(13));
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_newer_journal_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let text = line(&Record::Header {
            version: VERSION + 1,
            next: 1,
        });
        std::fs::write(&path, &text).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("version 3"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
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
        let (entries, next, bad) = replay(&text).unwrap();
        assert_eq!((entries.len(), next, bad.len()), (1, 8, 0));
        assert_eq!(entries[0].gpu_instance, Some(13));
    }

    #[test]
    fn it_never_grows_for_ever_and_half_a_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path);
        let mut longest = 0;
        for number in 0..3_000 {
            let a = journal.intend("GPU-1", 19, 6, 1).unwrap();
            journal.made(a, 13).unwrap();
            if number == 2_000 {
                // As a full disk leaves it.
                journal.file.write_all(b"00000000 {\"op\"").unwrap();
                journal.file.set_len(journal.length).unwrap();
            }
            journal.released(a).unwrap();
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
        let kept = journal.intend("GPU-1", 19, 5, 1).unwrap();
        drop(journal);
        assert!(longest < 1 << 20, "{longest} bytes");
        let (journal, bad) = open(&path);
        assert_eq!(bad, []);
        assert_eq!(journal.entries().len(), 1);
        assert_eq!(journal.entries()[0].generation, kept);
        assert_eq!(journal.next, kept + 1);
    }
}
