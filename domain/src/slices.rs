//! The memory slices of one GPU as a set of bits; knows nothing of profiles.

use std::fmt;

/// A set of memory slices of one GPU, slice 0 first.
///
/// A placement `{start, size}` of NVML (`nvmlGpuInstancePlacement_t`) is in these slices: 8 on
/// A100, H100, H200 and B200, 4 on A30, 12 on RTX PRO 6000 Blackwell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slices(u32);

impl Slices {
    /// No slice at all.
    pub const EMPTY: Self = Self(0);

    /// The slices `start..start + size`. No GPU has slices from 32 on: they are dropped.
    pub fn span(start: u8, size: u8) -> Self {
        let below = |end: u32| if end >= 32 { u32::MAX } else { (1 << end) - 1 };
        Self(below(u32::from(start) + u32::from(size)) & !below(u32::from(start)))
    }

    /// Whether the two sets share a slice.
    pub fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The slices in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The slices of this set that are not in `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many slices the set has.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The lowest slice of the set; 32 for the empty one.
    pub fn first(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Slices> for Slices {
    fn from_iter<I: IntoIterator<Item = Self>>(sets: I) -> Self {
        sets.into_iter().fold(Self::EMPTY, Self::union)
    }
}

/// Runs of slices: `0-3,6`; the empty set is `none`.
impl fmt::Display for Slices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut rest = self.0;
        let mut separator = "";
        while rest != 0 {
            let start = rest.trailing_zeros();
            let len = (rest >> start).trailing_ones();
            let end = start + len - 1;
            if start == end {
                write!(f, "{separator}{start}")?;
            } else {
                write!(f, "{separator}{start}-{end}")?;
            }
            rest &= !Self::span(
                u8::try_from(start).unwrap_or(31),
                u8::try_from(len).unwrap_or(32),
            )
            .0;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_touch_only_their_own_slices() {
        assert!(!Slices::span(0, 4).overlaps(Slices::span(4, 4)));
        assert!(Slices::span(0, 4).overlaps(Slices::span(3, 1)));
        assert_eq!(Slices::span(0, 8).minus(Slices::span(2, 2)).count(), 6);
        assert_eq!(Slices::span(30, 9).count(), 2, "beyond 32 there is nothing");
        assert_eq!(Slices::span(255, 255), Slices::EMPTY);
        assert_eq!(Slices::span(0, 32).count(), 32);
    }

    #[test]
    fn runs_are_printed() {
        let set = Slices::span(0, 4).union(Slices::span(6, 1));
        assert_eq!(set.to_string(), "0-3,6");
        assert_eq!(Slices::EMPTY.to_string(), "none");
        assert_eq!(Slices::span(0, 32).to_string(), "0-31");
    }
}
