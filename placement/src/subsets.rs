//! Subsets of pods, for those who try what fits without them.

/// Sets of pods without which a demand is planned before giving up.
pub(crate) const MAX_PLANS: usize = 4_000;
/// Pods of the largest set that is found by trying all sets.
pub(crate) const MAX_SET_SIZE: usize = 3;

/// Calls `one` with every subset of that size, in order.
pub(crate) fn subsets<T: Copy>(items: &[T], size: usize, one: &mut impl FnMut(&[T])) {
    fn go<T: Copy>(rest: &[T], size: usize, set: &mut Vec<T>, one: &mut impl FnMut(&[T])) {
        if size == 0 {
            one(set);
            return;
        }
        for at in 0..rest.len().saturating_sub(size - 1) {
            set.push(rest[at]);
            go(&rest[at + 1..], size - 1, set, one);
            set.pop();
        }
    }
    go(items, size, &mut Vec::new(), one);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subset_comes_once_and_in_order() {
        let mut all = Vec::new();
        subsets(&[1, 2, 3], 2, &mut |set| all.push(set.to_vec()));
        assert_eq!(all, [[1, 2], [1, 3], [2, 3]]);
    }
}
