//! The mix of profiles that are asked for.

use std::collections::BTreeMap;

use domain::gpu::Offer;

/// The mix of profiles that are asked for, each a part of 1, in the order of the model's plain offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Parts; they add up to 1.
    pub parts: Vec<f64>,
    seen: u32,
}

/// Requests over which the mix is averaged.
const AVERAGED_REQUESTS: u32 = 500;

impl Mix {
    /// Where nothing is known: equal parts.
    pub fn unknown(profiles: usize) -> Self {
        let part = 1.0 / f64::from(u32::try_from(profiles.max(1)).unwrap_or(u32::MAX));
        Self {
            parts: vec![part; profiles],
            seen: 0,
        }
    }

    /// The mix in proportion to these weights.
    pub fn of(mut weights: Vec<f64>) -> Self {
        let sum: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum.max(f64::MIN_POSITIVE);
        }
        Self {
            parts: weights,
            seen: AVERAGED_REQUESTS,
        }
    }

    /// Counts a request for the profile of that index.
    pub fn count(&mut self, profile: usize) {
        // The unknown mix counts as some requests at first, so that the first few do not decide alone.
        self.seen = (self.seen + 1).min(AVERAGED_REQUESTS);
        let weight = 1.0 / f64::from(self.seen + 20).min(f64::from(AVERAGED_REQUESTS));
        for (at, part) in self.parts.iter_mut().enumerate() {
            let now = if at == profile { 1.0 } else { 0.0 };
            *part += weight * (now - *part);
        }
    }

    /// The mix of the instances that are claimed, by the name of their profile.
    ///
    /// It is in twentieths, so that it changes rarely, and starts with a few of each. It is a function
    /// of the claims alone: the same after a restart, and whatever their order was.
    pub fn of_claims(offers: &[Offer], claimed: &BTreeMap<String, u32>) -> Self {
        const AT_FIRST: u32 = 3;
        let counts = offers
            .iter()
            .map(|offer| claimed.get(&offer.profile).unwrap_or(&0));
        let counts: Vec<u32> = counts.map(|count| count + AT_FIRST).collect();
        let all: u32 = counts.iter().sum();
        let twentieths = counts
            .iter()
            .map(|count| (20 * count + all / 2) / all.max(1));
        Self::of(twentieths.map(f64::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_follows_what_is_asked_for() {
        let mut mix = Mix::unknown(4);
        for _ in 0..2_000 {
            mix.count(2);
        }
        assert!(mix.parts[2] > 0.95, "{mix:?}");
        assert!((mix.parts.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
