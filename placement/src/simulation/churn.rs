//! A fleet of cards under arrivals and departures: what simulations, benchmarks and self-tuning run.

use std::collections::{BinaryHeap, HashMap};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    layouts::Layouts,
    simulation::{fleet::Fleet, stock::Placed},
};

/// A pod of one device. Times are in whatever unit the caller counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it arrives.
    pub at: f64,
    /// How long it runs.
    pub lifetime: f64,
    /// Index of its profile in [`Layouts::offers`].
    pub profile: usize,
}

/// What became of the pods, in memory slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Slices asked for.
    pub asked: u64,
    /// Slices given.
    pub accepted: u64,
    /// Pods that got a device.
    pub pods: u64,
    /// Running devices that were moved to make room.
    pub moves: u64,
}

impl Outcome {
    /// Slices given per slices asked for, in percent.
    #[allow(clippy::cast_precision_loss, reason = "slices are far below 2^52")]
    pub fn percent(&self) -> f64 {
        100.0 * self.accepted as f64 / self.asked.max(1) as f64
    }
}

/// Poisson arrivals with exponential lifetimes of mean 1, in this mix and at this load (slices in demand at a time, per slices of all cards).
pub fn poisson(
    layouts: &Layouts,
    mix: &[f64],
    load: f64,
    cards: u32,
    count: u32,
    seed: u64,
) -> Vec<Arrival> {
    let mut random = SmallRng::seed_from_u64(seed);
    let sum: f64 = mix.iter().sum();
    let sizes = layouts.offers.iter().map(|offer| f64::from(offer.size));
    let mean: f64 = sizes.zip(mix).map(|(size, part)| size * part / sum).sum();
    let rate = load * f64::from(layouts.slices) * f64::from(cards) / mean;
    let exponential = |random: &mut SmallRng| -(1.0 - random.random::<f64>()).ln();
    let mut at = 0.0;
    (0..count)
        .map(|_| {
            at += exponential(&mut random) / rate;
            let mut pick = random.random::<f64>() * sum;
            let profile = mix.iter().position(|part| {
                pick -= part;
                pick < 0.0
            });
            Arrival {
                at,
                lifetime: exponential(&mut random),
                profile: profile.unwrap_or(0),
            }
        })
        .collect()
}

/// When a pod ends. The earliest is the largest, so that a [`BinaryHeap`] gives it first.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    /// When, in the unit of the arrivals.
    pub at: f64,
    /// The pod's number in the order of arrival.
    pub pod: usize,
}

impl PartialEq for Departure {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Departure {}
impl PartialOrd for Departure {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Departure {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.total_cmp(&self.at).then(other.pod.cmp(&self.pod))
    }
}

/// Pods that do not fit are lost; the first `skip` pods are not counted. With `moves`, one running device may be
/// moved for a pod that would be lost.
pub fn lossy(fleet: &mut Fleet<'_>, arrivals: &[Arrival], skip: usize, moves: bool) -> Outcome {
    let layouts = fleet.layouts();
    let mut ends: BinaryHeap<Departure> = BinaryHeap::new();
    let mut live: Vec<Option<Placed>> = vec![None; arrivals.len()];
    let mut holders: HashMap<Placed, usize> = HashMap::new();
    let mut outcome = Outcome::default();
    for (number, arrival) in arrivals.iter().enumerate() {
        while let Some(Departure { at, pod }) = ends.peek().copied()
            && at <= arrival.at
        {
            ends.pop();
            if let Some(placed) = live[pod].take() {
                fleet.remove(placed);
                if moves {
                    holders.remove(&placed);
                }
            }
        }
        let mut steps = 0;
        let mut placed = fleet.place(arrival.profile);
        if placed.is_none()
            && moves
            && let Some((found, other)) = fleet.place_by_move(arrival.profile)
        {
            if let Some(pod) = holders.remove(&other.from) {
                live[pod] = Some(other.to);
                holders.insert(other.to, pod);
            }
            steps = 1;
            placed = Some(found);
        }
        if let Some(placed) = placed {
            live[number] = Some(placed);
            if moves {
                holders.insert(placed, number);
            }
            ends.push(Departure {
                at: arrival.at + arrival.lifetime,
                pod: number,
            });
        }
        if number >= skip {
            let size = u64::from(layouts.offers[arrival.profile].size);
            outcome.asked += size;
            if placed.is_some() {
                outcome.accepted += size;
                outcome.pods += 1;
            }
            outcome.moves += steps;
        }
    }
    outcome
}

/// Pods wait until they fit, and the oldest is tried first; returns how long each waited.
///
/// As in kube-scheduler, a pod that does not fit does not hold up the others.
pub fn waiting(fleet: &mut Fleet<'_>, arrivals: &[Arrival]) -> Vec<f64> {
    let mut ends: BinaryHeap<Departure> = BinaryHeap::new();
    let mut live: Vec<Option<Placed>> = vec![None; arrivals.len()];
    let mut waits = vec![0.0; arrivals.len()];
    let mut queue: Vec<usize> = Vec::new();
    let mut next = 0;
    loop {
        let end = ends.peek().map(|end| end.at);
        let now = match (end, arrivals.get(next)) {
            (Some(at), arrival) if arrival.is_none_or(|arrival| at <= arrival.at) => {
                if let Some(placed) = ends.pop().and_then(|end| live[end.pod].take()) {
                    fleet.remove(placed);
                }
                at
            }
            (_, Some(arrival)) => {
                queue.push(next);
                next += 1;
                arrival.at
            }
            (_, None) => return waits,
        };
        let mut in_vain: Vec<usize> = Vec::new();
        queue.retain(|&pod| {
            let Arrival {
                at,
                lifetime,
                profile,
            } = arrivals[pod];
            if in_vain.contains(&profile) {
                return true;
            }
            live[pod] = fleet.place(profile);
            if live[pod].is_none() {
                in_vain.push(profile);
                return true;
            }
            waits[pod] = now - at;
            ends.push(Departure {
                at: now + lifetime,
                pod,
            });
            false
        });
    }
}
