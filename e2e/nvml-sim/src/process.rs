//! Processes on devices, and NVML sessions: each is a file whose lock lives as long as its process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::store::Store;

/// A process that is on a GPU or MIG device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProcess {
    /// Its id in its own namespace.
    pub pid: u32,
    /// Index of the GPU.
    pub gpu: usize,
    /// GPU instance and its serial number, and compute instance; absent: the whole GPU.
    pub instance: Option<(u32, u32, u32)>,
}

impl Store {
    /// Puts the calling process on a device, for as long as the returned file lives.
    pub fn hold(&self, process: &DeviceProcess) -> io::Result<File> {
        let stem = format!("gpu{}", process.gpu);
        lock_own_file(&self.process_files(), &stem, &serde_json::to_vec(process)?)
    }

    /// The processes that are on devices now, in whatever namespace.
    pub fn device_processes(&self) -> Vec<DeviceProcess> {
        locked_files(&self.process_files())
            .iter()
            .filter_map(|text| serde_json::from_str(text).ok())
            .collect()
    }

    /// Opens an NVML session of the calling process, for as long as the returned file lives.
    pub fn session(&self) -> io::Result<File> {
        let pid = std::process::id().to_string();
        lock_own_file(&self.session_files(), "session", pid.as_bytes())
    }

    /// How many processes have an NVML session.
    pub fn sessions(&self) -> usize {
        locked_files(&self.session_files()).len()
    }

    fn process_files(&self) -> PathBuf {
        self.dir().join("processes")
    }

    fn session_files(&self) -> PathBuf {
        self.dir().join("sessions")
    }
}

/// Writes a file and locks it. Files of processes that have ended are used again.
fn lock_own_file(directory: &Path, stem: &str, text: &[u8]) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    for number in 0..4096u32 {
        let path = directory.join(format!("{stem}-{number}"));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        if file.try_lock().is_ok() {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text)?;
            file.flush()?;
            return Ok(file);
        }
    }
    Err(io::Error::other(format!("too many {stem} files")))
}

/// The texts of the files that a living process has locked.
fn locked_files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let mut file = File::open(entry.path()).ok()?;
            let Err(TryLockError::WouldBlock) = file.try_lock_shared() else {
                return None;
            };
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            Some(text)
        })
        .collect()
}
