//! The state directory, which every process sees at once: the state, and the faults that are ordered.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    event::Event,
    fault::{Action, Control},
    proc,
    state::State,
};

/// A state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The directory; it may not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a fresh state, over whatever there was.
    pub fn provision(&self, state: &State) -> io::Result<()> {
        fs::create_dir_all(self.dir.join("processes"))?;
        let _lock = self.lock()?;
        self.save(state)
    }

    /// Runs `work` on the state, alone among all processes, and saves what it changed.
    pub fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        let _lock = self.lock()?;
        let before = self.load()?;
        let mut state = before.clone();
        let result = work(&mut state);
        if state != before {
            self.save(&state)?;
        }
        Ok(result)
    }

    /// The state as it is.
    pub fn snapshot(&self) -> io::Result<State> {
        self.with(|state| state.clone())
    }

    /// What changes whenever the state does: each is a file of its own. Cheaper than a look at it.
    pub(crate) fn version(&self) -> Option<(u64, SystemTime)> {
        let file = fs::metadata(self.dir.join("state.json")).ok()?;
        Some((file.ino(), file.modified().ok()?))
    }

    fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn load(&self) -> io::Result<State> {
        let bytes = fs::read(self.dir.join("state.json"))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn save(&self, state: &State) -> io::Result<()> {
        let fresh = self.dir.join("state.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(state)?)?;
        fs::rename(fresh, self.dir.join("state.json"))?;
        proc::write(&self.dir.join("proc"), state)
    }

    /// Writes the control file; `None` removes it.
    pub fn control(&self, control: Option<&Control>) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.dir.join("control.json");
        match control {
            Some(control) => fs::write(path, serde_json::to_vec_pretty(control)?),
            None if path.exists() => fs::remove_file(path),
            None => Ok(()),
        }
    }

    /// Counts a call; the fault that is ordered for it.
    pub fn fault(&self, call: &str, gpu: Option<usize>) -> io::Result<Option<Action>> {
        let path = self.dir.join("control.json");
        if !path.exists() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let mut control: Control = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => return Ok(None),
        };
        let action = control.count(call, gpu);
        fs::write(&path, serde_json::to_vec_pretty(&control)?)?;
        Ok(action)
    }

    /// Reports an event of a GPU.
    pub fn raise(&self, event: Event) -> io::Result<()> {
        self.with(|state| {
            state.gpu(event.gpu)?;
            state.raise(event);
            Ok(())
        })?
    }

    /// An uncorrectable memory error: an event, and a row whose remapping waits for a reset.
    pub fn double_bit_error(&self, gpu: usize) -> io::Result<()> {
        self.with(|state| state.double_bit_error(gpu))?
    }
}
