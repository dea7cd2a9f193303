//! This pod's priority in the election, by how well it can serve.

use std::num::NonZeroU8;

use crate::fault::Fault;

/// The pod can carry out its configuration.
pub const HEALTHY: NonZeroU8 = NonZeroU8::new(200).unwrap();
/// It can serve as before, but not carry out all of its configuration.
pub const DEGRADED: NonZeroU8 = NonZeroU8::new(150).unwrap();
/// It cannot serve.
pub const FAILED: NonZeroU8 = NonZeroU8::new(50).unwrap();

/// The priority for these faults. `links_up` says that both interfaces have a carrier,
/// and the pod network's next hop is alive.
pub fn compute(links_up: bool, faults: &[Fault]) -> NonZeroU8 {
    match faults {
        _ if !links_up || faults.iter().any(Fault::stops_serving) => FAILED,
        [] => HEALTHY,
        _ => DEGRADED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;

    #[test]
    fn priority_follows_links_and_faults() {
        let faults = [Fault::CapabilityMissing(capabilities::NET_RAW), Fault::NoDefaultRoute];
        assert_eq!(compute(true, &[]), HEALTHY);
        assert_eq!(compute(true, &faults[..1]), DEGRADED);
        assert_eq!(compute(true, &faults), FAILED);
        assert_eq!(compute(false, &[]), FAILED);
    }
}
