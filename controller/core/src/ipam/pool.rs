//! The free addresses of one network.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use lb_svc_crds::range::IpRange;
use rangemap::RangeInclusiveSet;

use super::Network;

/// The addresses of one network that a Service which names none could get.
///
/// Never-used ones come first, lowest first; freed ones come last, the one
/// after the last handed out first, so that a freed address rests as long as
/// it can. What was used before this process started counts as never used.
/// Memory and time depend on the number of fragments, not of addresses.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What may be handed out at all: hosts without gateway and excludes.
    allowed: RangeInclusiveSet<u32>,
    fresh: RangeInclusiveSet<u32>,
    freed: RangeInclusiveSet<u32>,
    /// Where the search among the freed ones goes on.
    cursor: u32,
    available: u64,
}

impl Pool {
    /// All of `network` is free.
    pub fn new(network: &Network) -> Self {
        let (first, last) = network.hosts();
        let mut allowed = RangeInclusiveSet::new();
        allowed.insert(first.into()..=last.into());
        let gateway = u32::from(network.gateway);
        allowed.remove(gateway..=gateway);
        for exclude in &network.excludes {
            if let (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) =
                (exclude.first(), exclude.last())
            {
                allowed.remove(first.into()..=last.into());
            }
        }
        let available = allowed.iter().map(size).sum();
        Self { fresh: allowed.clone(), freed: RangeInclusiveSet::new(), cursor: 0, available, allowed }
    }

    /// The address to hand out next; it stays free until it is [taken](Self::take).
    pub fn next(&self) -> Option<Ipv4Addr> {
        let rest = self.cursor..=u32::MAX;
        self.fresh
            .first()
            .map(|range| *range.start())
            .or_else(|| self.freed.overlapping(&rest).next().map(|range| self.cursor.max(*range.start())))
            .or_else(|| self.freed.first().map(|range| *range.start()))
            .map(Ipv4Addr::from)
    }

    /// Removes `address` from what is free; nothing happens if it was not.
    pub fn take(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        for set in [&mut self.fresh, &mut self.freed] {
            if set.contains(&address) {
                set.remove(address..=address);
                self.available -= 1;
                self.cursor = address.saturating_add(1);
            }
        }
    }

    /// Gives `address` back; nothing happens if it is free, or excluded.
    pub fn release(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        if self.allowed.contains(&address) && !self.fresh.contains(&address) && !self.freed.contains(&address)
        {
            self.freed.insert(address..=address);
            self.available += 1;
        }
    }

    /// How many addresses are free.
    pub fn available(&self) -> u64 {
        self.available
    }

    /// The free addresses as ranges, ascending.
    pub fn free(&self) -> Vec<IpRange> {
        let mut free = self.fresh.clone();
        for range in self.freed.iter() {
            free.insert(range.clone());
        }
        free.iter().map(as_ips).collect()
    }
}

fn size(range: &RangeInclusive<u32>) -> u64 {
    u64::from(range.end() - range.start()) + 1
}

fn as_ips(range: &RangeInclusive<u32>) -> IpRange {
    IpRange::between(Ipv4Addr::from(*range.start()).into(), Ipv4Addr::from(*range.end()).into())
}

/// `addresses` as ranges, ascending, neighbours joined.
pub(super) fn ranges(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Vec<IpRange> {
    let mut set = RangeInclusiveSet::new();
    for address in addresses {
        set.insert(u32::from(address)..=u32::from(address));
    }
    set.iter().map(as_ips).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::subnet_spec as spec;

    fn pool(cidr: &str, gateway: &str, excludes: &[&str]) -> Pool {
        Pool::new(&Network::parse(&spec(cidr, gateway, excludes)).unwrap())
    }

    fn text(ranges: &[IpRange]) -> String {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn pool_of_example_subnet_is_as_documented() {
        let mut pool = pool("172.18.0.0/16", "172.18.0.1", &["172.18.0.0..172.18.0.10"]);
        assert_eq!(pool.available(), 65524);
        assert_eq!(pool.next(), Some(ip("172.18.0.11")));
        assert_eq!(text(&pool.free()), "172.18.0.11-172.18.255.254");
        pool.take(ip("172.18.0.18"));
        assert_eq!(pool.available(), 65523);
        assert_eq!(text(&pool.free()), "172.18.0.11-172.18.0.17,172.18.0.19-172.18.255.254");
    }

    #[test]
    fn pool_excludes_gateway_network_and_broadcast() {
        let excludes = ["10.0.0.2", "10.0.0.4", "10.0.0.100", "10.0.0.252", "10.0.0.253", "10.0.0.254"];
        let pool = pool("10.0.0.0/24", "10.0.0.1", &excludes);
        assert_eq!(text(&pool.free()), "10.0.0.3,10.0.0.5-10.0.0.99,10.0.0.101-10.0.0.251");
    }

    #[test]
    fn pool_ignores_excludes_outside_the_network() {
        let pool = pool("10.0.0.0/30", "10.0.0.1", &["10.0.0.2", "10.9.0.0..10.9.0.9", "fd00::1"]);
        assert_eq!((pool.available(), pool.next()), (0, None));
    }

    #[test]
    fn pool_of_31_has_two_hosts() {
        let mut pool = pool("10.0.0.0/31", "10.0.0.0", &["10.0.0.0"]);
        assert_eq!(pool.next(), Some(ip("10.0.0.1")));
        pool.take(ip("10.0.0.1"));
        assert_eq!(pool.next(), None);
    }

    #[test]
    fn pool_hands_out_freed_addresses_last() {
        let mut pool = pool("10.0.0.0/29", "10.0.0.1", &[]);
        let take = |pool: &mut Pool| {
            let next = pool.next().unwrap();
            pool.take(next);
            u32::from(next) & 7
        };
        assert_eq!((take(&mut pool), take(&mut pool), take(&mut pool)), (2, 3, 4));
        pool.release(ip("10.0.0.2"));
        pool.release(ip("10.0.0.3"));
        assert_eq!((take(&mut pool), take(&mut pool)), (5, 6));
        assert_eq!(take(&mut pool), 2);
        pool.release(ip("10.0.0.2"));
        assert_eq!(take(&mut pool), 3, "10.0.0.2 was just freed");
        assert_eq!(take(&mut pool), 2);
        assert_eq!(pool.next(), None);
    }

    #[test]
    fn pool_counts_repeated_take_and_release_once() {
        let mut pool = pool("10.0.0.0/29", "10.0.0.1", &["10.0.0.6"]);
        assert_eq!(pool.available(), 4);
        pool.take(ip("10.0.0.2"));
        pool.take(ip("10.0.0.2"));
        pool.take(ip("10.0.0.6"));
        assert_eq!(pool.available(), 3);
        pool.release(ip("10.0.0.2"));
        pool.release(ip("10.0.0.2"));
        pool.release(ip("10.0.0.6"));
        assert_eq!(pool.available(), 4, "an excluded address never becomes free");
    }

    mod model {
        use std::collections::BTreeSet;

        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug)]
        enum Op {
            Allocate,
            Take(u8),
            Release(u8),
        }

        fn op() -> impl Strategy<Value = Op> {
            prop_oneof![
                3 => Just(Op::Allocate),
                1 => (0..64u8).prop_map(Op::Take),
                3 => (0..64u8).prop_map(Op::Release),
            ]
        }

        proptest! {
            /// A pool of a /26 does what two sets of single addresses do.
            #[test]
            fn pool_equals_two_plain_sets(gateway in 1..62u8, excludes in prop::collection::vec((0..64u8, 0..9u8), 0..4), ops in prop::collection::vec(op(), 0..200)) {
                let excludes: Vec<String> = excludes
                    .iter()
                    .map(|(first, more)| format!("10.0.0.{first}..10.0.0.{}", (first + more).min(63)))
                    .collect();
                let texts: Vec<&str> = excludes.iter().map(String::as_str).collect();
                let mut pool = pool("10.0.0.0/26", &format!("10.0.0.{gateway}"), &texts);
                let excluded = |last: u8| excludes.iter().any(|range| {
                    let range: IpRange = range.parse().unwrap();
                    let address = std::net::IpAddr::V4(ip(&format!("10.0.0.{last}")));
                    range.first() <= address && address <= range.last()
                });
                let allowed: BTreeSet<u8> = (1..63).filter(|last| *last != gateway && !excluded(*last)).collect();
                let (mut fresh, mut freed) = (allowed.clone(), BTreeSet::new());
                for op in ops {
                    match op {
                        Op::Allocate => {
                            let next = pool.next().map(|address| address.octets()[3]);
                            match next {
                                Some(last) if !fresh.is_empty() => prop_assert_eq!(Some(&last), fresh.first()),
                                Some(last) => prop_assert!(freed.contains(&last)),
                                None => prop_assert!(fresh.is_empty() && freed.is_empty()),
                            }
                            if let Some(last) = next {
                                pool.take(ip(&format!("10.0.0.{last}")));
                                let _ = fresh.remove(&last) || freed.remove(&last);
                            }
                        }
                        Op::Take(last) => {
                            pool.take(ip(&format!("10.0.0.{last}")));
                            let _ = fresh.remove(&last) || freed.remove(&last);
                        }
                        Op::Release(last) => {
                            pool.release(ip(&format!("10.0.0.{last}")));
                            if allowed.contains(&last) && !fresh.contains(&last) {
                                freed.insert(last);
                            }
                        }
                    }
                    let free: BTreeSet<u8> = fresh.union(&freed).copied().collect();
                    prop_assert_eq!(pool.available(), free.len() as u64);
                    let ranges = ranges(free.iter().map(|last| ip(&format!("10.0.0.{last}"))));
                    prop_assert_eq!(pool.free(), ranges);
                }
            }
        }
    }
}
