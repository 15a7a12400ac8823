//! The state directory: cards that every process sees at once, processes on them, faults to come.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    card::{Card, Code, RECOVER_BY_RESET},
    event::{DOUBLE_BIT_ECC, Event},
};

/// Events that are remembered.
const MOST_EVENTS: usize = 256;

/// All cards of a simulated node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// By NVML index.
    pub cards: Vec<Card>,
    /// Time that making or removing an instance takes, milliseconds.
    #[serde(default)]
    pub latency_ms: u64,
    /// The last events, oldest first.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Number of the next event.
    #[serde(default)]
    pub next_event: u64,
}

impl State {
    /// The card of that NVML index.
    pub fn card(&mut self, gpu: usize) -> io::Result<&mut Card> {
        self.cards.get_mut(gpu).ok_or_else(|| no_gpu(&gpu))
    }

    /// NVML index of the card of that index or UUID.
    pub fn find(&self, gpu: &str) -> io::Result<usize> {
        let mut cards = self.cards.iter().zip(0usize..);
        cards
            .find(|(card, index)| card.uuid() == gpu || gpu.parse() == Ok(*index))
            .map(|(_, index)| index)
            .ok_or_else(|| no_gpu(&gpu))
    }

    /// Lets something happen to a card; the event gets its number here.
    pub fn raise(&mut self, event: Event) {
        let number = self.next_event;
        self.events.push(Event { number, ..event });
        self.next_event += 1;
        let old = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..old);
    }
}

fn no_gpu(gpu: &dyn Display) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no GPU {gpu}"))
}

/// Faults and delays to come: `control.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The first rule that matches a call is carried out.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Calls seen since the file was written, by name, and all of them under `*`.
    #[serde(default)]
    pub seen: BTreeMap<String, u64>,
}

/// What to do to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name of the function, `*` for any.
    pub call: String,
    /// Only on a card of this index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<usize>,
    /// From the n-th such call on, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// How often; absent: for ever.
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

/// A process that is on a card or MIG device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id in its own namespace.
    pub pid: u32,
    /// Index of the card.
    pub gpu: usize,
    /// GPU instance and its serial number, and compute instance; absent: the whole card.
    pub instance: Option<(u32, u32, u32)>,
}

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

    /// Writes a fresh state, over whatever there was.
    pub fn provision(&self, state: &State) -> io::Result<()> {
        std::fs::create_dir_all(self.dir.join("holders"))?;
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
        let file = std::fs::metadata(self.dir.join("state.json")).ok()?;
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
        let bytes = std::fs::read(self.dir.join("state.json"))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn save(&self, state: &State) -> io::Result<()> {
        let fresh = self.dir.join("state.json.new");
        std::fs::write(&fresh, serde_json::to_vec_pretty(state)?)?;
        std::fs::rename(fresh, self.dir.join("state.json"))?;
        self.write_proc(state)
    }

    /// The driver's part of `/proc`: majors, and a file for each capability (kernel: `nv-caps.c`).
    fn write_proc(&self, state: &State) -> io::Result<()> {
        let proc = self.dir.join("proc");
        let caps = proc.join("driver/nvidia/capabilities");
        let file = |path: PathBuf, minor: u32| {
            std::fs::create_dir_all(path.parent().unwrap_or(&caps))?;
            std::fs::write(
                path,
                format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"),
            )
        };
        if !caps.exists() {
            file(caps.join("mig/config"), 1)?;
            file(caps.join("mig/monitor"), 2)?;
            let devices = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n508 nvidia-caps\n510 nvidia-uvm\n\nBlock devices:\n";
            std::fs::write(proc.join("devices"), devices)?;
        }
        for card in &state.cards {
            let mig = caps.join(format!("gpu{}/mig", card.minor));
            let known: Vec<String> = card
                .instances
                .iter()
                .map(|i| format!("gi{}", i.id))
                .collect();
            for entry in std::fs::read_dir(&mig).into_iter().flatten().flatten() {
                if !known.contains(&entry.file_name().to_string_lossy().into_owned()) {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            for instance in &card.instances {
                let gi = mig.join(format!("gi{}", instance.id));
                file(gi.join("access"), gi_minor(card.minor, instance.id))?;
                for entry in std::fs::read_dir(&gi)?.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let live = instance
                        .compute
                        .iter()
                        .any(|c| name == format!("ci{}", c.id));
                    if name != "access" && !live {
                        std::fs::remove_dir_all(entry.path())?;
                    }
                }
                for compute in &instance.compute {
                    let minor = ci_minor(card.minor, instance.id, compute.id);
                    file(gi.join(format!("ci{}/access", compute.id)), minor)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the control file; `None` removes it.
    pub fn control(&self, control: Option<&Control>) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.dir.join("control.json");
        match control {
            Some(control) => std::fs::write(path, serde_json::to_vec_pretty(control)?),
            None if path.exists() => std::fs::remove_file(path),
            None => Ok(()),
        }
    }

    /// Counts a call and tells what is to happen to it.
    pub fn fault(&self, call: &str, gpu: Option<usize>) -> io::Result<Option<Action>> {
        let path = self.dir.join("control.json");
        if !path.exists() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let mut control: Control = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => return Ok(None),
        };
        for name in [call, "*"] {
            *control.seen.entry(name.to_owned()).or_default() += 1;
        }
        let seen = control.seen.clone();
        let rule = control.rules.iter_mut().find(|rule| {
            (rule.call == "*" || rule.call == call)
                && rule.gpu.is_none_or(|wanted| gpu == Some(wanted))
                && rule
                    .nth
                    .is_none_or(|nth| seen.get(&rule.call).is_some_and(|count| *count >= nth))
                && rule.times != Some(0)
        });
        let action = rule.map(|rule| {
            rule.times = rule.times.map(|left| left.saturating_sub(1));
            rule.action
        });
        std::fs::write(&path, serde_json::to_vec_pretty(&control)?)?;
        Ok(action)
    }

    /// Lets something happen to a card: [`State::raise`] on one that exists.
    pub fn raise(&self, event: Event) -> io::Result<()> {
        self.with(|state| {
            state.card(event.gpu)?;
            state.raise(event);
            Ok(())
        })?
    }

    /// An uncorrectable memory error: an event, and a row whose remapping waits for a reset.
    pub fn double_bit_error(&self, gpu: usize) -> io::Result<()> {
        self.with(|state| {
            let card = state.card(gpu)?;
            card.remapped.uncorrectable += 1;
            card.remapped.pending = true;
            card.recovery_action = RECOVER_BY_RESET;
            state.raise(Event {
                gpu,
                kind: DOUBLE_BIT_ECC,
                ..Event::default()
            });
            Ok(())
        })?
    }

    /// Puts the calling process on a device: the returned file's lock is its life.
    pub fn hold(&self, holder: &Holder) -> io::Result<File> {
        let stem = format!("gpu{}", holder.gpu);
        self.claim("holders", &stem, &serde_json::to_vec(holder)?)
    }

    /// The processes that live on devices: those whose lock is held, in whatever namespace.
    pub fn holders(&self) -> Vec<Holder> {
        let claimed = self.claimed("holders");
        claimed
            .iter()
            .filter_map(|text| serde_json::from_str(text).ok())
            .collect()
    }

    /// Opens an NVML session of the calling process: the returned file's lock is its life.
    pub fn session(&self) -> io::Result<File> {
        let pid = std::process::id().to_string();
        self.claim("sessions", "session", pid.as_bytes())
    }

    /// How many processes have an NVML session.
    pub fn sessions(&self) -> usize {
        self.claimed("sessions").len()
    }

    /// Writes a file that counts for as long as the returned one lives; those of the dead are used again.
    fn claim(&self, directory: &str, stem: &str, text: &[u8]) -> io::Result<File> {
        let directory = self.dir.join(directory);
        std::fs::create_dir_all(&directory)?;
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

    /// The texts of the files that a living process has claimed.
    fn claimed(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join(directory));
        entries
            .into_iter()
            .flatten()
            .flatten()
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
}

/// Minor number of the capability of a GPU instance.
pub fn gi_minor(card: u32, gi: u32) -> u32 {
    3 + card * 135 + gi * 9
}

/// Minor number of the capability of a compute instance.
pub fn ci_minor(card: u32, gi: u32, ci: u32) -> u32 {
    gi_minor(card, gi) + 1 + ci
}
