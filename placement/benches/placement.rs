//! Placement rules under arrivals and departures, every rule on the same arrivals.
//!
//! Poisson arrivals, exponential lifetimes, a pod that does not fit is lost. Printed: the part of the
//! slices asked for that was accepted, with the half width of the 95 % interval, and the paired
//! difference of the default to each rule. `-- --help` lists the parameters.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use clap::Parser;
use domain::{fixtures, rule::Rule};
use placement::{
    layouts::Layouts,
    simulation::{
        self,
        churn::{self, Arrival, Outcome},
        repack,
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Names of the mixes.
const MIXES: [&str; 4] = ["uniform", "skew-small", "skew-big", "bimodal"];

/// The mixes over a model's profiles: on 8-slice cards as published for 1g.10gb, 1g.20gb, 2g.20gb, 3g.40gb, 4g.40gb and
/// 7g.80gb; on others by size.
fn mixes(layouts: &Layouts) -> [Vec<f64>; 4] {
    let count = layouts.offers.len();
    if count == 6 {
        return [
            vec![1.0; 6],
            vec![0.30, 0.25, 0.20, 0.10, 0.10, 0.05],
            vec![0.05, 0.10, 0.10, 0.20, 0.25, 0.30],
            vec![0.30, 0.15, 0.05, 0.05, 0.15, 0.30],
        ];
    }
    let sizes = || layouts.offers.iter().map(|offer| f64::from(offer.size));
    let (small, big) = (
        sizes().fold(f64::MAX, f64::min),
        sizes().fold(0.0, f64::max),
    );
    let extreme = |size: f64| size <= small || size >= big;
    [
        vec![1.0; count],
        sizes().map(|size| 1.0 / size).collect(),
        sizes().collect(),
        sizes()
            .map(|size| if extreme(size) { 0.4 } else { 0.1 })
            .collect(),
    ]
}

/// Compares placement rules.
#[derive(Parser)]
struct Args {
    /// Runs per cell.
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// Offered load: slices in demand at a time, per slices of all cards.
    #[arg(long, value_delimiter = ',', default_value = "0.85,1.0,1.2")]
    load: Vec<f64>,
    /// Model of the cards.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "a100-80gb,h100-80gb,h200,a30,rtx-pro-6000"
    )]
    model: Vec<String>,
    /// Cards.
    #[arg(long, value_delimiter = ',', default_value = "100")]
    cards: Vec<u32>,
    /// Generated mixes of the second table.
    #[arg(long, default_value_t = 40)]
    mixes: u64,
    /// Runs per generated mix.
    #[arg(long, default_value_t = 8)]
    mix_runs: u64,
    /// Rules; all when left out.
    #[arg(long, value_delimiter = ',')]
    rule: Vec<Rule>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Arrivals of a run: 20 per card before the measurement, 60 per card in it.
fn arrivals(layouts: &Layouts, mix: &[f64], load: f64, cards: u32, seed: u64) -> Vec<Arrival> {
    churn::poisson(layouts, mix, load, cards, 80 * cards, seed)
}

fn run(layouts: &Layouts, row: Row, cards: u32, arrivals: &[Arrival]) -> Outcome {
    let skip = arrivals.len() / 4;
    match row {
        Row::Rule(rule) => churn::lossy(
            &mut simulation::fleet(layouts, rule, cards),
            arrivals,
            skip,
            false,
        ),
        Row::OneMove => churn::lossy(
            &mut simulation::fleet(layouts, Rule::Demand, cards),
            arrivals,
            skip,
            true,
        ),
        Row::Repacked => repacked(layouts, cards, arrivals, skip),
    }
}

/// What a table has a line for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Row {
    Rule(Rule),
    /// The default, and one move for a pod that would be lost.
    OneMove,
    /// Everything may be moved: the bound.
    Repacked,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::OneMove => f.pad("demand, one move"),
            Self::Repacked => f.pad("free repacking"),
        }
    }
}

/// Accepts whatever fits in any arrangement.
fn repacked(layouts: &Layouts, cards: u32, arrivals: &[Arrival], skip: usize) -> Outcome {
    let mut counts = vec![0; layouts.offers.len()];
    let mut live: Vec<(f64, usize)> = Vec::new();
    let mut outcome = Outcome::default();
    for (number, arrival) in arrivals.iter().enumerate() {
        live.retain(|(end, profile)| {
            let stays = *end > arrival.at;
            counts[*profile] -= u32::from(!stays);
            stays
        });
        counts[arrival.profile] += 1;
        let fits = repack::fits(layouts, &counts, cards).unwrap_or(false);
        if fits {
            live.push((arrival.at + arrival.lifetime, arrival.profile));
        } else {
            counts[arrival.profile] -= 1;
        }
        if number >= skip {
            let size = u64::from(layouts.offers[arrival.profile].size);
            outcome.asked += size;
            outcome.accepted += if fits { size } else { 0 };
            outcome.pods += u64::from(fits);
        }
    }
    outcome
}

/// Does the runs on all cores; the results in the order of the runs.
fn parallel<T: Send>(runs: u64, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut results: Vec<(u64, T)> = std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..cores)
            .map(|core| {
                scope.spawn(move || {
                    let own = (core..runs).step_by(usize::try_from(cores).unwrap_or(1));
                    own.map(|run| (run, one(run))).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    results.sort_by_key(|(run, _)| *run);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Mean and half width of the 95 % interval.
fn mean(values: &[f64]) -> (f64, f64) {
    #[allow(clippy::cast_precision_loss, reason = "runs are few")]
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    (mean, 1.96 * deviation / count.sqrt())
}

fn main() {
    let args = Args::parse();
    let rules = if args.rule.is_empty() {
        Rule::ALL.to_vec()
    } else {
        args.rule.clone()
    };
    let mut rows: Vec<Row> = rules.iter().copied().map(Row::Rule).collect();
    if args.rule.is_empty() {
        rows.extend([Row::OneMove, Row::Repacked]);
    }
    let mut known: Vec<(&str, Layouts)> = Vec::new();
    for name in &args.model {
        let Some(layouts) = fixtures::model(name).as_ref().and_then(Layouts::new) else {
            println!(
                "no model {name:?}; write one of: {}",
                fixtures::model_keys().join(", ")
            );
            continue;
        };
        println!("\n# {name}");
        let same = known
            .iter()
            .find(|(_, other)| other.placements == layouts.placements);
        if let Some((known, _)) = same {
            println!("the same placements as {known}: the same figures");
            continue;
        }
        for &cards in &args.cards {
            for &load in &args.load {
                lossy(&layouts, &rows, cards, load, args.runs);
            }
        }
        if args.cards.contains(&100) {
            fill(&layouts, &rules, args.runs);
            one_move(&layouts, args.runs);
            if layouts.offers.len() == 6 {
                waiting(&layouts);
                generated(&layouts, args.mixes, args.mix_runs);
                for cards in [100, 1_000, 10_000] {
                    speed(&layouts, cards);
                }
            }
        }
        known.push((name, layouts));
    }
}

/// Arrivals and departures; a pod that does not fit is lost.
fn lossy(layouts: &Layouts, rows: &[Row], cards: u32, load: f64, runs: u64) {
    println!(
        "\nslices accepted, %, {cards} cards, load {load}, {runs} runs; in brackets {} minus the rule",
        rows[0]
    );
    heading(28);
    let mut results = vec![vec![]; rows.len()];
    for (at, mix) in mixes(layouts).iter().enumerate() {
        let all = parallel(runs, |number| {
            let arrivals = arrivals(layouts, mix, load, cards, number * 4 + at as u64);
            let of = |row: &Row| run(layouts, *row, cards, &arrivals).percent();
            rows.iter().map(of).collect::<Vec<f64>>()
        });
        for (row, results) in results.iter_mut().enumerate() {
            results.push(all.iter().map(|run| run[row]).collect::<Vec<f64>>());
        }
    }
    for (row, cells) in rows.iter().zip(&results) {
        print!("{row:18}");
        for (values, ours) in cells.iter().zip(&results[0]) {
            let (value, half) = mean(values);
            let paired: Vec<f64> = ours.iter().zip(values).map(|(a, b)| a - b).collect();
            let (gain, about) = mean(&paired);
            print!("  {value:6.2} ±{half:4.2} ({gain:+5.2} ±{about:4.2})");
        }
        println!();
    }
}

/// What one move for a pod that would be lost brings back, and how many moves it takes.
fn one_move(layouts: &Layouts, runs: u64) {
    const CARDS: u32 = 100;
    const LOAD: f64 = 0.85;
    println!("\none move for a pod that would be lost, {CARDS} cards, load {LOAD}, {runs} runs");
    heading(16);
    let mut lines = vec![vec![]; 2];
    for (at, mix) in mixes(layouts).iter().enumerate() {
        let all = parallel(runs, |number| {
            let arrivals = arrivals(layouts, mix, LOAD, CARDS, number * 4 + at as u64);
            let of = |row| run(layouts, row, CARDS, &arrivals);
            (of(Row::Rule(Rule::Demand)), of(Row::OneMove))
        });
        let lost = |outcome: &Outcome| outcome.asked - outcome.accepted;
        let (before, after): (u64, u64) = all
            .iter()
            .map(|(without, with)| (lost(without), lost(with)))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let (moves, pods) = all.iter().fold((0, 0), |sum, (_, with)| {
            (sum.0 + with.moves, sum.1 + with.pods)
        });
        lines[0].push(format!(
            "{:15.1}%",
            percent(before.saturating_sub(after), before)
        ));
        lines[1].push(format!("{:16.2}", percent(moves, pods)));
    }
    println!("lost, recovered   {}", lines[0].concat());
    println!("moves per 100 pods{}", lines[1].concat());
}

#[allow(clippy::cast_precision_loss, reason = "slices are far below 2^52")]
fn percent(part: u64, all: u64) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}

/// Lifetimes log-normal with mean 1 and a deviation of the logarithm of 1, by Box and Muller.
fn set_log_normal_lifetimes(arrivals: &mut [Arrival], seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    for arrival in arrivals {
        let (a, b): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
        let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        arrival.lifetime = (normal - 0.5).exp();
    }
}

/// Pods that wait, as `MIGBench` generates them: 35/25/25/5 of 1g, 2g, 3g and 7g, log-normal durations, two nodes of four cards.
fn waiting(layouts: &Layouts) {
    const SEEDS: u64 = 40;
    const PODS: u32 = 500;
    const CARDS: u32 = 8;
    let mix = [35.0, 0.0, 25.0, 25.0, 0.0, 5.0];
    println!(
        "\npods that wait, {CARDS} cards in two nodes, {PODS} pods, {SEEDS} seeds: mean wait in mean durations"
    );
    println!(
        "{:18}{:>8}{:>12}{:>22}{:>10}{:>10}{:>10}{:>10}",
        "", "load", "wait", "by hami-2.10", "1g", "2g", "3g", "7g"
    );
    for load in [0.8, 0.9, 1.0, 1.1] {
        let rules = [
            Rule::Demand,
            Rule::Fixed,
            Rule::Hami210,
            Rule::HamiMaster,
            Rule::FirstFit,
            Rule::Fgd,
        ];
        let all = parallel(SEEDS, |seed| {
            let mut arrivals = churn::poisson(layouts, &mix, load, CARDS, PODS, seed);
            set_log_normal_lifetimes(&mut arrivals, seed + 1_000_000);
            rules.map(|rule| {
                let mut fleet = simulation::fleet(layouts, rule, CARDS);
                fleet.node = 4;
                let waits = churn::waiting(&mut fleet, &arrivals);
                let of = |profile: Option<usize>| {
                    let all = waits.iter().zip(&arrivals);
                    let own =
                        all.filter(|(_, arrival)| profile.is_none_or(|p| p == arrival.profile));
                    mean(&own.map(|(wait, _)| *wait).collect::<Vec<_>>()).0
                };
                [None, Some(0), Some(2), Some(3), Some(5)].map(of)
            })
        });
        for (at, rule) in rules.iter().enumerate() {
            let of = |rule: usize, column: usize| {
                all.iter()
                    .map(|run| run[rule][column])
                    .collect::<Vec<f64>>()
            };
            let (value, half) = mean(&of(at, 0));
            let hami = mean(&of(2, 0)).0;
            let paired: Vec<f64> = of(at, 0).iter().zip(of(2, 0)).map(|(a, b)| a - b).collect();
            let (gain, about) = mean(&paired);
            print!(
                "{rule:18}{load:8}{value:7.3} ±{half:4.3}{:+8.1}% ±{:4.1}%",
                100.0 * gain / hami,
                100.0 * about / hami
            );
            for column in 1..5 {
                print!("{:10.3}", mean(&of(at, column)).0);
            }
            println!();
        }
    }
}

fn heading(width: usize) {
    print!("{:18}", "");
    for name in MIXES {
        print!("{name:>width$}");
    }
    println!();
}

/// Requests until all slices are asked for once, without departures.
fn fill(layouts: &Layouts, rules: &[Rule], runs: u64) {
    const CARDS: u32 = 100;
    println!(
        "\nfilled to 100 % of {CARDS} cards without departures, slices accepted, %, {runs} runs"
    );
    heading(16);
    for rule in rules {
        print!("{rule:18}");
        for (at, mix) in mixes(layouts).iter().enumerate() {
            let values = parallel(runs, |run| {
                let arrivals = arrivals(layouts, mix, 1.0, CARDS, run * 4 + at as u64);
                let mut fleet = simulation::fleet(layouts, *rule, CARDS);
                let all = u64::from(CARDS) * u64::from(layouts.slices);
                let (mut asked, mut got) = (0, 0);
                for arrival in arrivals {
                    let size = u64::from(layouts.offers[arrival.profile].size);
                    if asked + size > all {
                        continue;
                    }
                    asked += size;
                    got += fleet.place(arrival.profile).map_or(0, |_| size);
                    if asked == all {
                        break;
                    }
                }
                percent(got, asked)
            });
            let (value, half) = mean(&values);
            print!("    {value:6.2} ±{half:4.2}");
        }
        println!();
    }
}

/// A mix of all, of two or of three profiles.
fn generate(random: &mut SmallRng) -> [f64; 6] {
    let mut mix = [0.0; 6];
    let mut part = || -(1.0 - random.random::<f64>()).ln();
    let parts = [part(), part(), part(), part(), part(), part()];
    match random.random_range(0..3) {
        0 => mix = parts,
        kinds => {
            for part in parts.iter().take(kinds + 1) {
                mix[random.random_range(0..6)] += part;
            }
        }
    }
    mix
}

/// How our rules do on mixes that nobody chose, against the best published rule of each mix.
fn generated(layouts: &Layouts, mixes: u64, runs: u64) {
    const CARDS: u32 = 100;
    // Templates are left out: they serve 4g with 3g, so they win where 4g is asked for by giving less than that.
    let published = [
        Rule::RoundRobin,
        Rule::FirstFit,
        Rule::BestFit,
        Rule::Hami210,
        Rule::Hami210Binpack,
        Rule::HamiMaster,
        Rule::Mfi,
        Rule::MfiAll,
        Rule::Fgd,
    ];
    let mut random = SmallRng::seed_from_u64(20_260_101);
    let ours = [Rule::Demand, Rule::Tuned, Rule::Fixed];
    let mut margins = vec![vec![]; ours.len()];
    for number in 0..mixes {
        let mix = generate(&mut random);
        let value = |rule: Rule| {
            let runs = parallel(runs, |number_of_run| {
                let arrivals = arrivals(layouts, &mix, 1.0, CARDS, 1_000 * number + number_of_run);
                run(layouts, Row::Rule(rule), CARDS, &arrivals).percent()
            });
            mean(&runs).0
        };
        let best = published.iter().map(|rule| (value(*rule), *rule));
        let Some((best, by)) = best.max_by(|a, b| a.0.total_cmp(&b.0)) else {
            return;
        };
        for (rule, margins) in ours.iter().zip(&mut margins) {
            margins.push((value(*rule) - best, by, mix));
        }
    }
    println!(
        "\n{mixes} generated mixes, load 1, {CARDS} cards, {runs} runs each: margin to the best of nine published rules chosen per mix, points"
    );
    for (rule, margins) in ours.iter().zip(&mut margins) {
        margins.sort_by(|a, b| a.0.total_cmp(&b.0));
        let values: Vec<f64> = margins.iter().map(|(margin, ..)| *margin).collect();
        let Some((worst, by, mix)) = margins.first() else {
            return;
        };
        let sum: f64 = mix.iter().sum();
        let mix: Vec<String> = mix
            .iter()
            .map(|part| format!("{:.2}", part / sum))
            .collect();
        println!(
            "{rule:18} mean {:+.2}, worst {worst:+.2} (by {by} on {})",
            mean(&values).0,
            mix.join(" ")
        );
    }
}

/// Decisions per second at load 1 on one core.
fn speed(layouts: &Layouts, cards: u32) {
    let arrivals = arrivals(layouts, &mixes(layouts)[0], 1.0, cards, 7);
    let started = Instant::now();
    let part = run(layouts, Row::Rule(Rule::Demand), cards, &arrivals).percent();
    let took = started.elapsed();
    #[allow(clippy::cast_precision_loss, reason = "arrivals are far below 2^52")]
    let rate = arrivals.len() as f64 / took.as_secs_f64();
    println!(
        "{:.2} million decisions a second with their departures, one core, {cards} cards ({part:.1} % accepted)",
        rate / 1e6
    );
}
