//! Pseudo-random choices.

/// Pseudo-random numbers from a linear congruential generator, the same in each run.
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }

    /// Returns an item of a slice; none if it is empty.
    pub fn one<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        match items.len() {
            0 => None,
            length => items.get(self.below(length)),
        }
    }
}
