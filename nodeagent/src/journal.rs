//! What this node's agent has made, on disk: intent before NVML is called, identity after.
//!
//! One JSON record a line, behind the CRC-32 of the record in hex, appended and flushed to the disk
//! before the next step. A torn last line is the normal trace of a crash; any other bad line is
//! reported and skipped. An unknown version is refused as a whole: the file was written by a newer agent.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Version of the record format.
const VERSION: u32 = 1;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum Record {
    /// First line of a file.
    Header { version: u32 },
    /// About to make it.
    Intent(Entry),
    /// The GPU instance exists.
    Made { generation: u64, gpu_instance: u32 },
    /// It is gone.
    Released { generation: u64 },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
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
    #[error("journal {path}")]
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
        let io_error = |source| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io_error(error)),
        };
        let (entries, next, bad) = replay(&text).map_err(|found| JournalError::Version {
            path: path.to_owned(),
            found,
        })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(io_error)?;
        let mut fresh = tempfile::NamedTempFile::new_in(directory).map_err(io_error)?;
        let mut lines = line(&Record::Header { version: VERSION });
        for entry in &entries {
            lines += &line(&Record::Intent(entry.clone()));
        }
        fresh.write_all(lines.as_bytes()).map_err(io_error)?;
        fresh.as_file().sync_all().map_err(io_error)?;
        fresh.persist(path).map_err(|error| io_error(error.error))?;
        File::open(directory)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error)?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(io_error)?;
        let journal = Self {
            path: path.to_owned(),
            file,
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
        };
        self.append(&Record::Intent(entry.clone()))?;
        self.next += 1;
        let generation = entry.generation;
        self.entries.push(entry);
        Ok(generation)
    }

    /// Records which GPU instance it became.
    pub fn made(&mut self, generation: u64, gpu_instance: u32) -> Result<(), JournalError> {
        self.append(&Record::Made {
            generation,
            gpu_instance,
        })?;
        if let Some(entry) = self.entries.iter_mut().find(|e| e.generation == generation) {
            entry.gpu_instance = Some(gpu_instance);
        }
        Ok(())
    }

    /// Records that it is gone, or never came to be.
    pub fn released(&mut self, generation: u64) -> Result<(), JournalError> {
        self.append(&Record::Released { generation })?;
        self.entries.retain(|entry| entry.generation != generation);
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        self.file
            .write_all(line(record).as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|source| JournalError::Io {
                path: self.path.clone(),
                source,
            })
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
        match record {
            Record::Header { version } if version != VERSION => return Err(version),
            Record::Header { .. } => {}
            Record::Intent(entry) => {
                next = next.max(entry.generation + 1);
                entries.retain(|known| known.generation != entry.generation);
                entries.push(entry);
            }
            Record::Made {
                generation,
                gpu_instance,
            } => {
                if let Some(entry) = entries.iter_mut().find(|e| e.generation == generation) {
                    entry.gpu_instance = Some(gpu_instance);
                }
            }
            Record::Released { generation } => entries.retain(|e| e.generation != generation),
        }
    }
    Ok((entries, next, bad))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let b = journal.intend("GPU-1", 19, 5, 1).unwrap();
        let c = journal.intend("GPU-1", 9, 0, 4).unwrap();
        journal.released(c).unwrap();
        let before = journal.entries().to_vec();
        drop(journal);
        let (mut journal, bad) = open(&path);
        assert_eq!(bad, []);
        assert_eq!(journal.entries(), before);
        assert_eq!(journal.entries()[0].gpu_instance, Some(13));
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
        let text = line(&Record::Header { version: 2 });
        std::fs::write(&path, &text).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
