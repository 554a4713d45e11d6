//! Order in which servers are tried.

use crate::error::{Error, Result};
use crate::options::Options;

/// Option for the order: `random`, `given`, or a number, which gives the same order each time.
pub const ORDER: &str = "x-spc.order";

/// Order of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Different each time, so that many hosts spread over the servers.
    #[default]
    Random,
    /// Order of the source.
    Given,
    /// Random, but the same each time for this seed.
    Seed(u64),
}

impl Order {
    /// Returns the order that the options name; [`Order::Random`] without the option.
    ///
    /// # Errors
    /// The value of the option is invalid.
    pub fn from_options(options: &Options) -> Result<Self> {
        match options.value(ORDER) {
            None if options.has(ORDER) => Err(bad("")),
            None | Some("random") => Ok(Self::Random),
            Some("given") => Ok(Self::Given),
            Some(text) => text.parse().map(Self::Seed).map_err(|_| bad(text)),
        }
    }

    /// Arranges items in this order.
    ///
    /// # Errors
    /// getrandom(2) fails.
    pub fn arrange<T>(self, items: &mut [T]) -> Result<()> {
        let mut seed = match self {
            Self::Given => return Ok(()),
            Self::Seed(seed) => seed,
            Self::Random => {
                let mut bytes = [0; 8];
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                    .map_err(|e| Error::system("cannot get random bytes").because(e))?;
                u64::from_ne_bytes(bytes)
            }
        };
        // Fisher-Yates shuffle: each order is equally likely.
        for last in (1..items.len()).rev() {
            let below = (u128::from(next(&mut seed)) * (last as u128 + 1)) >> 64;
            items.swap(last, usize::try_from(below).unwrap_or(last));
        }
        Ok(())
    }

    /// Returns the name to show.
    pub fn name(self) -> String {
        match self {
            Self::Random => "random".into(),
            Self::Given => "given".into(),
            Self::Seed(seed) => format!("seed {seed}"),
        }
    }
}

fn bad(text: &str) -> Error {
    Error::usage(format!("bad option {ORDER}: {}", text.escape_default()))
        .hint("use random, given, or a number, which gives the same order each time")
}

/// Returns the next pseudo-random number (SplitMix64). The sequence must stay the same in all
/// versions.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(order: &str) -> Vec<char> {
        let options = Options::parse([format!("{ORDER}={order}").as_str()]).unwrap();
        let mut items = vec!['a', 'b', 'c'];
        Order::from_options(&options)
            .unwrap()
            .arrange(&mut items)
            .unwrap();
        items
    }

    #[test]
    fn order_follows_the_option() {
        assert_eq!(arranged("given"), ['a', 'b', 'c']);
        let seeded: Vec<_> = (0..20).map(|_| arranged("7")).collect();
        // Users rely on the same order in all versions.
        assert!(seeded.iter().all(|order| *order == ['c', 'a', 'b']));
        let random: std::collections::BTreeSet<_> = (0..200).map(|_| arranged("random")).collect();
        assert_eq!(random.len(), 6);
        for bad in ["", "x", "-1", "first"] {
            let options = Options::parse([format!("{ORDER}={bad}").as_str()]).unwrap();
            assert!(Order::from_options(&options).is_err(), "{bad}");
        }
    }

    #[test]
    fn seeds_spread_evenly_over_orders() {
        let mut firsts = std::collections::BTreeMap::new();
        let mut orders = std::collections::BTreeMap::new();
        for seed in 0..1000 {
            let mut items = vec!['a', 'b', 'c', 'd'];
            Order::Seed(seed).arrange(&mut items).unwrap();
            *firsts.entry(items[0]).or_insert(0) += 1;
            *orders.entry(items).or_insert(0) += 1;
        }
        // Expected: 250 per first item (standard deviation 14), and 42 per order (deviation 6).
        assert!(
            firsts.values().all(|n| (200..=300).contains(n)),
            "{firsts:?}"
        );
        assert_eq!(orders.len(), 24);
        assert!(orders.values().all(|n| (15..=75).contains(n)), "{orders:?}");
    }
}
