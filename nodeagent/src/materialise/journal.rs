//! What this node's agent has created, on disk: the intent before NVML is called, the identity after, and for whom.
//!
//! Records are appended and flushed to the disk before the next step: `intent` → `made` (GPU instance) →
//! `complete` (compute instance) → `bound` (a pod's container) → `released`. A file of an unknown version is refused
//! as a whole: a newer agent wrote it. `journal_format` has the format.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::journal_format::{
    BadLine, Record, Replay, UnknownVersion, VERSION, apply, line, replay,
};
use crate::gpus::record::{ContainerRef, JournalEntry};

/// Number of appended records after which the file is rewritten with the live entries alone.
const COMPACT_AFTER: u32 = 4_096;

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Length of the whole records in bytes. What follows them is the trace of a write that failed.
    length: u64,
    appended: u32,
    entries: Vec<JournalEntry>,
    next: u64,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("journal {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
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
    /// Opens or creates the journal. Returns it with the lines that were skipped.
    ///
    /// The file is replaced by one with the live entries alone, so it does not grow for ever.
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
        let Replay {
            entries,
            next,
            bad_lines,
        } = replay(&text).map_err(|UnknownVersion(found)| JournalError::Version {
            path: path.to_owned(),
            found,
        })?;
        let (file, length) = rewrite(path, &entries, next).map_err(|source| JournalError::Io {
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
        Ok((journal, bad_lines))
    }

    /// The entries that were not released.
    pub fn entries(&self) -> &[JournalEntry] {
        &self.entries
    }

    /// Records that an instance is about to be created. Returns its generation.
    pub fn record_intent(
        &mut self,
        gpu: &str,
        profile_id: u32,
        start: u8,
        size: u8,
    ) -> Result<u64, JournalError> {
        let entry = JournalEntry {
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

    /// Records the id of the GPU instance.
    pub fn record_gpu_instance(
        &mut self,
        generation: u64,
        gpu_instance: u32,
    ) -> Result<(), JournalError> {
        self.record(Record::Made {
            generation,
            gpu_instance,
        })
    }

    /// Records the id of its compute instance.
    pub fn record_compute_instance(
        &mut self,
        generation: u64,
        compute_instance: u32,
    ) -> Result<(), JournalError> {
        self.record(Record::Complete {
            generation,
            compute_instance,
        })
    }

    /// Records the container that has it now.
    pub fn record_owner(
        &mut self,
        generation: u64,
        owner: ContainerRef,
    ) -> Result<(), JournalError> {
        self.record(Record::Bound {
            generation,
            to: owner,
        })
    }

    /// Records that it is gone or was not created.
    pub fn record_release(&mut self, generation: u64) -> Result<(), JournalError> {
        self.record(Record::Released { generation })
    }

    fn record(&mut self, record: Record) -> Result<(), JournalError> {
        self.append(&record)?;
        apply(&mut self.entries, record);
        if self.appended >= COMPACT_AFTER {
            (self.file, self.length) = rewrite(&self.path, &self.entries, self.next)
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
            // Half a line must not spoil the next one. If even this fails, the next line is lost with it and reported as bad.
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

/// Replaces the file by one with the live entries alone. Returns the file to append to, and its length.
fn rewrite(path: &Path, entries: &[JournalEntry], next: u64) -> io::Result<(File, u64)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> ContainerRef {
        ContainerRef {
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
        assert!(bad.is_empty(), "{bad:?}");
        let a = journal.record_intent("GPU-1", 19, 6, 1).unwrap();
        journal.record_gpu_instance(a, 13).unwrap();
        journal.record_compute_instance(a, 0).unwrap();
        journal.record_owner(a, owner("b")).unwrap();
        journal.record_owner(a, owner("a")).unwrap();
        let b = journal.record_intent("GPU-1", 19, 5, 1).unwrap();
        let c = journal.record_intent("GPU-1", 9, 0, 4).unwrap();
        journal.record_release(c).unwrap();
        let before = journal.entries().to_vec();
        drop(journal);
        let (mut journal, bad) = open(&path);
        assert!(bad.is_empty(), "{bad:?}");
        assert_eq!(journal.entries(), before);
        assert_eq!(journal.entries()[0].gpu_instance, Some(13));
        assert_eq!(journal.entries()[0].compute_instance, Some(0));
        assert_eq!(journal.entries()[0].bound.as_ref(), Some(&owner("a")));
        assert_eq!(journal.entries()[1].generation, b);
        assert!(
            journal.record_intent("GPU-1", 19, 4, 1).unwrap() > b,
            "generations are never used again"
        );
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
    fn it_never_grows_for_ever_and_half_a_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path);
        let mut longest = 0;
        for number in 0..3_000 {
            let a = journal.record_intent("GPU-1", 19, 6, 1).unwrap();
            journal.record_gpu_instance(a, 13).unwrap();
            if number == 2_000 {
                // As a full disk leaves it.
                journal.file.write_all(b"00000000 {\"op\"").unwrap();
                journal.file.set_len(journal.length).unwrap();
            }
            journal.record_release(a).unwrap();
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
        let kept = journal.record_intent("GPU-1", 19, 5, 1).unwrap();
        drop(journal);
        assert!(longest < 1 << 20, "{longest} bytes");
        let (journal, bad) = open(&path);
        assert!(bad.is_empty(), "{bad:?}");
        assert_eq!(journal.entries().len(), 1);
        assert_eq!(journal.entries()[0].generation, kept);
        assert_eq!(journal.next, kept + 1);
    }
}
