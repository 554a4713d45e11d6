//! In which order servers are asked.

use crate::error::{Error, Result};
use crate::options::Options;

/// The option that says it: `random`, `given`, or a number, which makes the same choice each time.
pub const ORDER: &str = "x-spc.order";

/// An order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Another one each time, so that many hosts spread over the servers.
    #[default]
    Random,
    /// As they were named.
    Given,
    /// The one that belongs to this number.
    Seed(u64),
}

impl Order {
    /// As the options have it.
    ///
    /// # Errors
    /// The option is none of these.
    pub fn from_options(options: &Options) -> Result<Self> {
        match options.value(ORDER) {
            None if options.has(ORDER) => Err(bad("")),
            None | Some("random") => Ok(Self::Random),
            Some("given") => Ok(Self::Given),
            Some(text) => text.parse().map(Self::Seed).map_err(|_| bad(text)),
        }
    }

    /// Puts these in order.
    ///
    /// # Errors
    /// The kernel gives no random number.
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
        // Fisher and Yates: each order is as likely as any other.
        for last in (1..items.len()).rev() {
            let below = (u128::from(next(&mut seed)) * (last as u128 + 1)) >> 64;
            items.swap(last, usize::try_from(below).unwrap_or(last));
        }
        Ok(())
    }

    /// The word for it, for people.
    pub fn word(self) -> String {
        match self {
            Self::Random => "random".into(),
            Self::Given => "given".into(),
            Self::Seed(seed) => format!("seed {seed}"),
        }
    }
}

fn bad(text: &str) -> Error {
    Error::usage(format!("bad option {ORDER}: {}", text.escape_default()))
        .hint("it is random, given, or a number that makes the same choice each time")
}

/// The next number of a sequence that looks random (SplitMix64, the same in every version).
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
    fn the_order_is_as_it_was_asked_for() {
        assert_eq!(arranged("given"), ['a', 'b', 'c']);
        let again: Vec<_> = (0..20).map(|_| arranged("7")).collect();
        assert!(again.iter().all(|order| *order == again[0]));
        // The same in every version: who fixed a choice keeps it.
        assert_eq!(arranged("7"), again[0]);
        let random: std::collections::BTreeSet<_> = (0..200).map(|_| arranged("random")).collect();
        assert_eq!(random.len(), 6);
        for bad in ["", "x", "-1", "first"] {
            let options = Options::parse([format!("{ORDER}={bad}").as_str()]).unwrap();
            assert!(Order::from_options(&options).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_thousand_seeds_spread_evenly() {
        let mut firsts = std::collections::BTreeMap::new();
        let mut orders = std::collections::BTreeMap::new();
        for seed in 0..1000 {
            let mut items = vec!['a', 'b', 'c', 'd'];
            Order::Seed(seed).arrange(&mut items).unwrap();
            *firsts.entry(items[0]).or_insert(0) += 1;
            *orders.entry(items).or_insert(0) += 1;
        }
        // 250 each are expected, with a deviation of 14; 42 each of the 24 orders, with one of 6.
        assert!(
            firsts.values().all(|n| (200..=300).contains(n)),
            "{firsts:?}"
        );
        assert_eq!(orders.len(), 24);
        assert!(orders.values().all(|n| (15..=75).contains(n)), "{orders:?}");
    }
}
