//! The choice of addresses, by itself: no API server, no cluster.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use lb_svc_core::ipam::{Network, Pool};
use lb_svc_crds::SubnetSpec;

use crate::table::{Goal, Row};

/// Runs of each.
const RUNS: usize = 5;
/// Addresses given and taken back in one run.
const MANY: u32 = 1_000_000;
/// The goal, per second.
const GOAL: f64 = 1e6;

/// The rows.
pub fn measure() -> anyhow::Result<Vec<Row>> {
    let spec = SubnetSpec {
        provider: "lan.kube-system".to_owned(),
        cidr_block: "10.0.0.0/8".to_owned(),
        ..SubnetSpec::default()
    };
    let network = Network::parse(&spec)?;
    let (few, many) = (bytes_per_fragment(&network, MANY / 4)?, bytes_per_fragment(&network, MANY)?);
    let (mut given, mut back) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut pool = fragmented(&network, MANY);
        let start = Instant::now();
        let mut taken = Vec::new();
        for _ in 0..MANY {
            let address = pool.next().context("a /8 is full")?;
            pool.take(address);
            taken.push(address);
        }
        given.push(f64::from(MANY) / start.elapsed().as_secs_f64());
        scatter(&mut taken);
        let start = Instant::now();
        for address in taken {
            pool.release(address);
        }
        back.push(f64::from(MANY) / start.elapsed().as_secs_f64());
        eprintln!("  {:.0} | {:.0} /s", given[given.len() - 1], back[back.len() - 1]);
    }
    let rate = |name: &str, rates: &[f64]| {
        Row::of(crate::table::median, name, "/s", rates, None, Goal::AtLeast(GOAL))
    };
    Ok(vec![
        rate("Allocator, a /8 in 1,000,000 fragments: addresses given", &given),
        rate("Allocator, the same: addresses given back, scattered", &back),
        Row::new(
            "Allocator, memory per fragment: of 1,000,000, over of 250,000",
            "B",
            &[many],
            &[few],
            Goal::RatioAtMost(1.1),
        ),
    ])
}

/// A pool in so many pieces: every other address is taken.
fn fragmented(network: &Network, fragments: u32) -> Pool {
    let mut pool = Pool::new(network);
    for fragment in 0..fragments {
        pool.take(Ipv4Addr::from(u32::from(network.cidr.network()) + 3 + 2 * fragment));
    }
    pool
}

/// By how much this process grows for a pool, for each of its pieces.
fn bytes_per_fragment(network: &Network, fragments: u32) -> anyhow::Result<f64> {
    let before = resident()?;
    let pool = fragmented(network, fragments);
    let grown = resident()? - before;
    anyhow::ensure!(pool.available() > 0);
    Ok(grown / f64::from(fragments))
}

/// The memory this process holds, in bytes.
fn resident() -> anyhow::Result<f64> {
    Ok(lb_svc_e2e::fleet::resident(Path::new("/proc/self"))? * f64::from(1 << 20))
}

/// The order of a pack of cards that was shuffled (xorshift, always the same).
fn scatter(addresses: &mut [Ipv4Addr]) {
    let mut dice: u64 = 0x9e37_79b9_7f4a_7c15;
    for last in (1..addresses.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        addresses.swap(last, usize::try_from(dice % (last as u64 + 1)).unwrap_or_default());
    }
}
