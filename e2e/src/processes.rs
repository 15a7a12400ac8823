//! The named processes of a state directory. They outlive whoever started them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    error::{AtPath, Error},
    process::{Process, TERMINATION_GRACE, end},
    state_dir::StateDir,
    wait::until,
};

/// How a process is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What it is called in this cluster; also the name of its log file.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment: these, `PATH` and `HOME`, nothing else of the caller's.
    pub env: BTreeMap<String, String>,
}

impl Spec {
    /// A process without arguments.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

/// What lies in `run/NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    process: Process,
    spec: Spec,
}

/// The named processes of a state directory.
#[derive(Debug, Clone)]
pub struct Processes {
    run: PathBuf,
    log: PathBuf,
}

impl Processes {
    /// Those of this state directory.
    pub fn new(state_dir: &StateDir) -> Self {
        Self {
            run: state_dir.run(),
            log: state_dir.log(),
        }
    }

    /// Starts a process in its own session, its output appended to its log. A process that runs under this name already is left alone.
    pub fn start(&self, spec: &Spec) -> Result<Process, Error> {
        if let Some(process) = self.running(&spec.name) {
            return Ok(process);
        }
        let log = self.log_file(&spec.name);
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .at(&log)?;
        let errors = output.try_clone().at(&log)?;
        if !spec.program.is_file() {
            return Err(Error::NotInstalled(spec.program.clone()));
        }
        // setsid(1) makes the session and then becomes the program, under the same id.
        let child = Command::new("setsid")
            .arg(&spec.program)
            .args(&spec.args)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .envs(&spec.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Spawn {
                program: spec.program.clone(),
                source,
            })?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let process = Process::of(pid).ok_or_else(|| self.died(&spec.name))?;
        let record = serde_json::to_vec_pretty(&Record {
            process,
            spec: spec.clone(),
        })?;
        let file = self.record_file(&spec.name);
        fs::write(&file, record).at(&file)?;
        Ok(process)
    }

    /// Starts a process that ended, as it was started last.
    pub fn start_again(&self, name: &str) -> Result<Process, Error> {
        self.start(&self.read(name)?.spec)
    }

    /// Ends a process: SIGTERM, then SIGKILL. It can be started again.
    pub async fn stop(&self, name: &str) -> Result<(), Error> {
        end(&[self.read(name)?.process], TERMINATION_GRACE).await;
        Ok(())
    }

    /// Kills a process as a crash would, by SIGKILL, and waits until it is gone.
    pub async fn crash(&self, name: &str) -> Result<(), Error> {
        let process = self.read(name)?.process;
        process.signal(Signal::SIGKILL);
        until(
            &format!("{name} to be gone"),
            TERMINATION_GRACE,
            async || (!process.is_alive()).then_some(()),
        )
        .await
    }

    /// Stops and starts a process.
    pub async fn restart(&self, name: &str) -> Result<Process, Error> {
        self.stop(name).await?;
        self.start_again(name)
    }

    /// Stops a process and forgets how it was started.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        self.stop(name).await?;
        let file = self.record_file(name);
        fs::remove_file(&file).at(&file)
    }

    /// The process of this name, while it runs.
    pub fn running(&self, name: &str) -> Option<Process> {
        let process = self.read(name).ok()?.process;
        process.is_alive().then_some(process)
    }

    /// How the process of this name was started last.
    pub fn spec(&self, name: &str) -> Result<Spec, Error> {
        Ok(self.read(name)?.spec)
    }

    /// The names of all processes that were started, in order.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.run) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_suffix(".json")?
                        .to_owned(),
                )
            })
            .collect();
        names.sort();
        names
    }

    /// The log file of a process.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.log.join(format!("{name}.log"))
    }

    /// The error that a process ended when it should run, with the end of its log.
    pub fn died(&self, name: &str) -> Error {
        let log = self.log_file(name);
        Error::Died {
            name: name.into(),
            tail: tail(&log),
            log,
        }
    }

    fn record_file(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.json"))
    }

    fn read(&self, name: &str) -> Result<Record, Error> {
        let text = fs::read(self.record_file(name)).map_err(|_| Error::Unknown(name.into()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The last lines of a file, 4 KiB at most.
fn tail(file: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(file) {
        let _ = file.seek(SeekFrom::End(-4096));
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::unistd::Pid;

    use super::*;

    fn processes() -> (tempfile::TempDir, Processes) {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(dir.path());
        fs::create_dir_all(state_dir.run()).unwrap();
        fs::create_dir_all(state_dir.log()).unwrap();
        (dir, Processes::new(&state_dir))
    }

    fn sleeper() -> Spec {
        Spec::new("sleeper", "/bin/sh")
            .args(["-c", "echo $WORD; exec sleep 60"])
            .env("WORD", "hello")
    }

    #[tokio::test]
    async fn a_process_runs_in_its_own_session_and_is_ended_by_name() {
        let (_dir, processes) = processes();
        let process = processes.start(&sleeper()).unwrap();
        assert_eq!(
            processes.start(&sleeper()).unwrap(),
            process,
            "it runs already"
        );
        let log = processes.log_file("sleeper");
        until("the log", TERMINATION_GRACE, async || {
            (fs::read_to_string(&log).unwrap() == "hello\n").then_some(())
        })
        .await
        .unwrap();
        let session = nix::unistd::getsid(Some(Pid::from_raw(process.pid))).unwrap();
        assert_eq!(session.as_raw(), process.pid);

        processes.stop("sleeper").await.unwrap();
        assert_eq!(processes.running("sleeper"), None);
        assert!(Process::of(process.pid).is_none());
    }

    #[tokio::test]
    async fn a_crashed_process_is_started_again_as_it_was() {
        let (_dir, processes) = processes();
        let first = processes.start(&sleeper()).unwrap();
        processes.crash("sleeper").await.unwrap();
        let second = processes.start_again("sleeper").unwrap();
        assert_ne!(first, second);
        assert_eq!(processes.running("sleeper"), Some(second));
        assert_eq!(processes.names(), ["sleeper"]);
        processes.remove("sleeper").await.unwrap();
        assert!(processes.names().is_empty());
        assert!(matches!(
            processes.start_again("sleeper"),
            Err(Error::Unknown(_))
        ));
    }

    #[tokio::test]
    async fn a_process_with_a_used_again_id_is_not_touched() {
        let (_dir, processes) = processes();
        let process = processes.start(&sleeper()).unwrap();
        let other = Process {
            started: process.started + 1,
            ..process
        };
        other.signal(Signal::SIGKILL);
        assert!(!other.is_alive());
        assert!(process.is_alive());
        processes.crash("sleeper").await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_is_killed() {
        let (_dir, processes) = processes();
        let spec = Spec::new("deaf", "/bin/sh")
            .args(["-c", "trap '' TERM; echo; while :; do sleep 1; done"]);
        let process = processes.start(&spec).unwrap();
        let log = processes.log_file("deaf");
        until("the log", TERMINATION_GRACE, async || {
            (fs::metadata(&log).unwrap().len() > 0).then_some(())
        })
        .await
        .unwrap();
        end(&[process], Duration::from_millis(200)).await;
        assert!(!process.is_alive());
    }
}
