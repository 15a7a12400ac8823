//! The scenarios: one cluster is brought up, each runs on it in turn, and it is taken down without a trace.

mod scenarios;

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use e2e::{
    error::Error,
    state_dir,
    tessera::{Options, Tessera},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use crate::scenarios::{SCENARIOS, Scenario, world::World};

/// How long idle instances are kept, seconds: short, because scenarios wait until nothing is left.
const IDLE_TTL: u32 = 1;
/// No scenario takes longer.
const SCENARIO_TIMEOUT: Duration = Duration::from_mins(3);

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static WORLD: OnceLock<Result<World, Error>> = OnceLock::new();

fn main() {
    daemon::install_crypto();
    let runtime = Runtime::new().expect("threads can be started");
    let _ = RUNTIME.set(runtime);
    let mut arguments = Arguments::from_args();
    // They share the machine's one cluster.
    arguments.test_threads = Some(1);
    let mut trials: Vec<Trial> = SCENARIOS
        .iter()
        .map(|(name, scenario)| Trial::test(*name, move || run(*scenario)))
        .collect();
    trials.push(Trial::test("z_down_leaves_no_trace", down));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if WORLD.get().is_some() {
        // A filter may have left the last trial out.
        let _ = down();
    }
    conclusion.exit();
}

fn runtime() -> &'static Runtime {
    RUNTIME.get().expect("main has set it")
}

fn dir() -> PathBuf {
    state_dir::default_dir()
}

fn world() -> &'static Result<World, Error> {
    WORLD.get_or_init(|| {
        runtime().block_on(async {
            let started = Instant::now();
            let options = Options {
                idle_ttl: Some(IDLE_TTL),
                ..Options::default()
            };
            let tessera = Tessera::up(&dir(), options, |_| {}).await?;
            eprintln!(
                "the cluster is up after {:.1} s",
                started.elapsed().as_secs_f64()
            );
            Ok(World { tessera })
        })
    })
}

fn run(scenario: Scenario) -> Result<(), Failed> {
    let world = world().as_ref();
    let world = world.map_err(|error| format!("the cluster is not up: {error}: {error:?}"))?;
    let started = Instant::now();
    let result = runtime().block_on(async {
        let result = tokio::time::timeout(SCENARIO_TIMEOUT, scenario(world.clone())).await;
        let result =
            result.unwrap_or_else(|_| Err(anyhow::anyhow!("took more than {SCENARIO_TIMEOUT:?}")));
        let cleared = world.clear().await;
        let removed = world.remove_added_nodes().await;
        result.and(cleared).and(removed)
    });
    eprintln!("{:.1} s", started.elapsed().as_secs_f64());
    result.map_err(|error| {
        let kept = keep_logs();
        Failed::from(format!("{error:#}\nlogs are in {}", kept.display()))
    })
}

/// Copies the logs to where they outlive the cluster.
fn keep_logs() -> PathBuf {
    let to = e2e::programs::tools_dir().with_file_name("e2e-logs");
    let _ = std::fs::create_dir_all(&to);
    let logs = std::fs::read_dir(dir().join("log"))
        .into_iter()
        .flatten()
        .flatten();
    for log in logs.filter(|log| log.path().is_file()) {
        let _ = std::fs::copy(log.path(), to.join(log.file_name()));
    }
    to
}

fn down() -> Result<(), Failed> {
    runtime().block_on(e2e::teardown::down(&dir()))?;
    let left = e2e::leftovers::find(&dir());
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("left on the machine: {}", left.join("; ")).into())
    }
}
