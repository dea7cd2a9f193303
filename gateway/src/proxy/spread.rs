//! Which target a new connection gets.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::config::{Frontend, Target};

/// Most clients whose affinity is remembered. Those beyond are led by the hash alone.
const CLIENTS: usize = 16_384;

/// Chooses targets, and remembers the affinity of clients.
#[derive(Debug, Default)]
pub struct Spread {
    clients: HashMap<(Frontend, Ipv4Addr), (SocketAddrV4, Instant)>,
}

impl Spread {
    /// The target of a new connection; `None` without an endpoint.
    ///
    /// Without affinity it is any endpoint. With it, it is the endpoint that the client
    /// had within the affinity's time; else one by a hash of both addresses, which is the
    /// same in every pod, and stays when others come and go.
    pub fn choose(
        &mut self,
        frontend: Frontend,
        target: &Target,
        client: Ipv4Addr,
        now: Instant,
    ) -> Option<SocketAddrV4> {
        let endpoints = match target {
            Target::ClusterIp(address) => return Some(SocketAddrV4::new(*address, frontend.port)),
            Target::Endpoints(endpoints) => endpoints,
        };
        let Some(seconds) = endpoints.affinity else {
            let random = getrandom::u32().unwrap_or_default();
            let at = usize::try_from(random).unwrap_or_default().checked_rem(endpoints.live.len())?;
            return endpoints.live.iter().nth(at).copied();
        };
        let key = (frontend, client);
        let known = self.clients.get(&key).filter(|(_, until)| now < *until).map(|(endpoint, _)| *endpoint);
        let endpoint = known
            .filter(|endpoint| endpoints.live.contains(endpoint))
            .or_else(|| endpoints.live.iter().copied().max_by_key(|endpoint| score(client, *endpoint)))?;
        let is_full = self.clients.len() >= CLIENTS && !self.clients.contains_key(&key);
        if is_full {
            self.clients.retain(|_, (_, until)| now < *until);
        }
        if !is_full || self.clients.len() < CLIENTS {
            self.clients.insert(key, (endpoint, now + Duration::from_secs(seconds.into())));
        }
        Some(endpoint)
    }
}

/// The weight of an endpoint for a client (rendezvous hashing).
fn score(client: Ipv4Addr, endpoint: SocketAddrV4) -> u64 {
    let pair = u64::from(u32::from(client)) << 32 | u64::from(u32::from(*endpoint.ip()));
    mix(mix(pair).wrapping_add(endpoint.port().into()))
}

/// SplitMix64's step: every bit of the result depends on every bit of the input.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use lb_svc_crds::gateway::Transport;

    use super::*;
    use crate::config::Endpoints;

    const FRONTEND: Frontend =
        Frontend { address: Ipv4Addr::new(172, 18, 0, 18), transport: Transport::Tcp, port: 80 };

    fn pods(numbers: &[u8]) -> BTreeSet<SocketAddrV4> {
        numbers.iter().map(|last| SocketAddrV4::new([10, 16, 0, *last].into(), 8080)).collect()
    }

    fn direct(numbers: &[u8], affinity: Option<u32>) -> Target {
        let live = pods(numbers);
        Target::Endpoints(Arc::new(Endpoints { live, affinity, ..Endpoints::default() }))
    }

    fn client(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0xc000_0200 + number)
    }

    #[test]
    fn connections_are_spread_over_live_endpoints() {
        let mut spread = Spread::default();
        let now = Instant::now();
        let cluster_ip = Target::ClusterIp([10, 96, 0, 1].into());
        let to = spread.choose(FRONTEND, &cluster_ip, client(1), now);
        assert_eq!(to, Some("10.96.0.1:80".parse().unwrap()));
        assert_eq!(spread.choose(FRONTEND, &direct(&[], None), client(1), now), None);
        assert_eq!(spread.choose(FRONTEND, &direct(&[], Some(9)), client(1), now), None);
        for affinity in [None, Some(60)] {
            let mut counts = BTreeMap::new();
            for number in 0..3000 {
                let target = direct(&[1, 2, 3], affinity);
                let to = spread.choose(FRONTEND, &target, client(number), now).unwrap();
                *counts.entry(to).or_insert(0) += 1;
            }
            assert!(
                counts.len() == 3 && counts.values().all(|count| (850..=1150).contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn client_with_affinity_stays_and_every_pod_leads_a_new_one_alike() {
        let now = Instant::now();
        let (mut one, mut other) = (Spread::default(), Spread::default());
        let all: Vec<_> = (0..200)
            .map(|n| one.choose(FRONTEND, &direct(&[1, 2, 3], Some(60)), client(n), now).unwrap())
            .collect();
        for (number, first) in (0..).zip(&all) {
            let elsewhere = other.choose(FRONTEND, &direct(&[1, 2, 3], Some(60)), client(number), now);
            assert_eq!(elsewhere, Some(*first));
            // More endpoints move nobody; one that is gone moves its clients only.
            let more = direct(&[1, 2, 3, 4, 5], Some(60));
            assert_eq!(one.choose(FRONTEND, &more, client(number), now), Some(*first));
            let less = direct(&[2, 3], Some(60));
            let moved = other.choose(FRONTEND, &less, client(number), now).unwrap();
            assert_eq!(moved == *first, first.ip().octets()[3] != 1);
        }
        // After its time a client may go elsewhere.
        let later = now + Duration::from_secs(61);
        let more = direct(&[1, 2, 3, 4, 5], Some(60));
        let moved = (0..)
            .zip(&all)
            .filter(|(number, first)| one.choose(FRONTEND, &more, client(*number), later) != Some(**first));
        assert!((40..=120).contains(&moved.count()));
    }

    #[test]
    fn remembered_clients_are_bounded() {
        let mut spread = Spread::default();
        let (now, target) = (Instant::now(), direct(&[1, 2], Some(60)));
        for number in 0..u32::try_from(CLIENTS).unwrap() + 100 {
            assert!(spread.choose(FRONTEND, &target, client(number), now).is_some());
        }
        assert_eq!(spread.clients.len(), CLIENTS);
        spread.choose(FRONTEND, &target, client(0x00ff_0000), now + Duration::from_secs(61));
        assert_eq!(spread.clients.len(), 1, "those whose time is over make room");
    }
}
