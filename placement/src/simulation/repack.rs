//! Whether devices would fit if all of them could be moved: the bound that no rule can pass.

use domain::slices::Slices;

use crate::layouts::Layouts;

/// Whether these numbers of devices of each profile (in the order of [`Layouts::offers`]) fit on the cards in any
/// arrangement; `None` for a grid that is neither of nested windows nor that of a 7-slice card.
pub fn fits(layouts: &Layouts, counts: &[u32], cards: u32) -> Option<bool> {
    if is_nested(layouts) {
        // Largest first, nested windows leave no gap: the slices decide.
        let all = layouts.offers.iter().zip(counts);
        let asked: u32 = all
            .map(|(offer, count)| u32::from(offer.size) * count)
            .sum();
        return Some(asked <= u32::from(layouts.slices) * cards);
    }
    let of = |size: u8, starts: &[u8]| -> u32 {
        let all = layouts.offers.iter().zip(counts);
        all.filter(|(offer, _)| offer.size == size && offer.starts == starts)
            .map(|(_, count)| count)
            .sum()
    };
    let single = of(1, &[0, 1, 2, 3, 4, 5, 6]);
    let (pair, pair_with_compute) = (of(2, &[0, 2, 4, 6]), of(2, &[0, 2, 4]));
    let (half, low_half, whole) = (of(4, &[0, 4]), of(4, &[0]), of(8, &[0]));
    let known = single + pair + pair_with_compute + half + low_half + whole;
    if layouts.slices != 8 || known != counts.iter().sum::<u32>() {
        return None;
    }
    // A low half takes all that a high one takes, so what fits on a high half goes there first.
    let Some(halves) = cards.checked_sub(whole) else {
        return Some(false);
    };
    let Some(low) = halves.checked_sub(low_half) else {
        return Some(false);
    };
    let high = halves.saturating_sub(half);
    let Some(low) = low.checked_sub(half.saturating_sub(halves)) else {
        return Some(false);
    };
    // Pair windows that take anything: two of a low half, the one at 4 of a high half. The one at 6 takes a pair
    // without compute or one single.
    let Some(pairs) = (2 * low + high).checked_sub(pair_with_compute) else {
        return Some(false);
    };
    let at_six = high.min(pair);
    let singles = single.saturating_sub(high - at_six);
    Some(pair - at_six + singles.div_ceil(2) <= pairs)
}

/// Whether any two windows are disjoint or nested, and every size stands wherever it tiles the card.
fn is_nested(layouts: &Layouts) -> bool {
    let slices = layouts.slices;
    layouts.offers.iter().all(|offer| {
        let size = offer.size.max(1);
        slices.is_multiple_of(size)
            && offer.starts == (0..slices / size).map(|n| n * size).collect::<Vec<_>>()
    }) && layouts.windows.iter().all(|a| {
        let nested =
            |b: &Slices| !a.overlaps(*b) || a.minus(*b).is_empty() || b.minus(*a).is_empty();
        layouts.windows.iter().all(nested)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::fixtures;
    use proptest::prelude::*;

    /// Tries every window of every card for every device.
    fn brute(layouts: &Layouts, counts: &mut [u32], cards: &mut [Slices]) -> bool {
        let Some(profile) = (0..counts.len())
            .filter(|at| counts[*at] > 0)
            .max_by_key(|at| layouts.offers[*at].size)
        else {
            return true;
        };
        counts[profile] -= 1;
        for card in 0..cards.len() {
            if cards[..card].contains(&cards[card]) {
                continue;
            }
            for window in layouts.offers[profile].windows() {
                if !cards[card].overlaps(window) {
                    let before = cards[card];
                    cards[card] = before.union(window);
                    let found = brute(layouts, counts, cards);
                    cards[card] = before;
                    if found {
                        counts[profile] += 1;
                        return true;
                    }
                }
            }
        }
        counts[profile] += 1;
        false
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn the_bound_agrees_with_brute_force(
            model in prop::sample::select(vec!["a100-80gb", "h200", "a30", "rtx-pro-6000"]),
            cards in 1usize..=2,
            mut counts in prop::collection::vec(0u32..4, 6),
        ) {
            let layouts = Layouts::new(&fixtures::model(model).unwrap()).unwrap();
            counts.truncate(layouts.offers.len());
            let bound = fits(&layouts, &counts, u32::try_from(cards).unwrap());
            let found = brute(&layouts, &mut counts, &mut vec![Slices::EMPTY; cards]);
            prop_assert_eq!(bound, Some(found), "{:?}", counts);
        }
    }
}
