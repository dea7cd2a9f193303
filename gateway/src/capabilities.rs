//! The Linux capabilities that the gateway needs.

use crate::fault::Fault;

/// Routes, rules, addresses, interfaces, NAT, conntrack.
pub const NET_ADMIN: &str = "NET_ADMIN";
/// Packet sockets: announcements, probes and the election.
pub const NET_RAW: &str = "NET_RAW";

/// The needed capabilities, with the bit of each (`linux/capability.h`).
const NEEDED: [(&str, u32); 2] = [(NET_ADMIN, 12), (NET_RAW, 13)];

/// The needed capabilities that are not effective, as faults.
pub fn missing() -> Vec<Fault> {
    match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => missing_in(&status),
        // Without /proc nothing is known; a missing one shows when it is used.
        Err(_) => Vec::new(),
    }
}

fn missing_in(status: &str) -> Vec<Fault> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(effective) = effective else {
        return Vec::new();
    };
    NEEDED
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| Fault::CapabilityMissing(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capability_is_named() {
        let status = |mask: &str| missing_in(&format!("Name:\tx\nCapEff:\t{mask}\nCapBnd:\t0\n"));
        assert_eq!(status("0000000000003000"), []);
        assert_eq!(status("0000000000001000"), [Fault::CapabilityMissing(NET_RAW)]);
        assert_eq!(status("0000000000000000").len(), 2);
        assert_eq!(
            status("0000000000002000")[0].to_string(),
            "capability NET_ADMIN is missing: add it to securityContext.capabilities.add of the gateway's container"
        );
    }
}
