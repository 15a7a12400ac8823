//! The scenarios: one cluster is brought up, each runs on it in turn, and it is taken down without a trace.

mod scenarios;

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use e2e::{Options, Tessera, layout};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use crate::scenarios::{SCENARIOS, Scenario, World};

/// Idle instances are kept so long here: the scenarios look at what is left, too.
const IDLE_TTL: u32 = 1;
/// No scenario takes longer.
const LIMIT: Duration = Duration::from_mins(3);

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static WORLD: OnceLock<Result<World, String>> = OnceLock::new();

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
    layout::default_dir()
}

fn world() -> &'static Result<World, String> {
    WORLD.get_or_init(|| {
        runtime().block_on(async {
            let started = Instant::now();
            let options = Options {
                idle_ttl: Some(IDLE_TTL),
                ..Options::default()
            };
            let tessera = Tessera::up(&dir(), options, |_| {}).await;
            let tessera = tessera.map_err(|error| format!("{error}: {error:?}"))?;
            eprintln!(
                "the cluster is up after {:.1} s",
                started.elapsed().as_secs_f64()
            );
            Ok(World { tessera })
        })
    })
}

fn run(scenario: Scenario) -> Result<(), Failed> {
    let world = world().as_ref().map_err(Failed::from)?;
    let started = Instant::now();
    let result = runtime().block_on(async {
        let result = tokio::time::timeout(LIMIT, scenario(world.clone())).await;
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("took more than {LIMIT:?}")));
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
    let to = layout::tools_dir().with_file_name("e2e-logs");
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
    let left = runtime().block_on(async {
        e2e::down(&dir())
            .await
            .map_err(|error| format!("{error}"))?;
        Ok::<_, String>(e2e::leftovers(&dir()))
    })?;
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("left on the machine: {}", left.join("; ")).into())
    }
}
