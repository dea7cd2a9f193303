//! Sets of ports, and which of them Services may have on nodes.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use lb_svc_crds::gateway::Port;
use lb_svc_crds::reason::Reason;

use crate::model::Problem;

/// The ports that nodes need themselves: SSH, DHCP, BGP, etcd, the API server,
/// supervisors of K3s and RKE2, tunnels of pod networks (VXLAN, Geneve, WireGuard),
/// the kubelet, kube-proxy and the control plane, and Kubernetes' range of node ports.
pub const RESERVED: &[RangeInclusive<u16>] = &[
    22..=22,
    68..=68,
    179..=179,
    546..=546,
    2379..=2381,
    4789..=4789,
    6081..=6081,
    6443..=6444,
    8472..=8472,
    9345..=9345,
    10_248..=10_259,
    30_000..=32_767,
    51_820..=51_821,
];
/// The most ranges of a set that is read.
const RANGES_MAX: usize = 1000;

/// A set of ports, as `80,443,8000-8999` writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Whether the port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

impl FromStr for PortSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
            range
                .map(|(first, last)| first..=last)
                .ok_or_else(|| format!("{:?} is neither a port nor a range such as 8000-8999", part.trim()))
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let ranges = text.split(',').take(RANGES_MAX + 1).map(range).collect::<Result<Vec<_>, _>>()?;
        if ranges.len() > RANGES_MAX {
            return Err(format!("there are more than {RANGES_MAX} ranges"));
        }
        Ok(Self(ranges))
    }
}

/// A port as people write it.
pub struct Named<'a>(pub &'a Port);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.port, self.0.protocol.name().to_ascii_uppercase())
    }
}

/// Which Services may use node addresses, and which ports: none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePermissions {
    /// The namespaces whose Services may.
    pub namespaces: BTreeSet<String>,
    /// The ports that they may have.
    pub ports: PortSet,
    /// The ports that nodes need, beside [`RESERVED`].
    pub reserved: PortSet,
}

impl NodePermissions {
    /// Whether a Service of `namespace` may ask for node addresses.
    ///
    /// # Errors
    /// The setting that is missing.
    pub fn check_namespace(&self, namespace: &str) -> Result<(), Problem> {
        if self.namespaces.contains(namespace) {
            return Ok(());
        }
        let message = format!(
            "Services of namespace {namespace} may not use node addresses: an administrator has to name it in nodeMode.namespaces of the controller's configuration"
        );
        Err(Problem::new(Reason::NodeModeNotAllowed, message))
    }

    /// Whether a Service may have this port on nodes.
    ///
    /// # Errors
    /// Why not.
    pub fn check_port(&self, port: &Port) -> Result<(), Problem> {
        let named = Named(port);
        if RESERVED.iter().any(|range| range.contains(&port.port)) || self.reserved.contains(port.port) {
            let message = format!("port {named} is one that nodes need themselves: choose another");
            return Err(Problem::new(Reason::PortReserved, message));
        }
        if !self.ports.contains(port.port) {
            let message = format!(
                "port {named} may not be used on nodes: choose one of nodeMode.ports of the controller's configuration, or have an administrator add it there"
            );
            return Err(Problem::new(Reason::NodeModeNotAllowed, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::gateway::Transport;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn set_of_ports_is_read_or_refused_as_a_whole() {
        let set: PortSet = "80, 443 ,8000-8002".parse().unwrap();
        let has: Vec<u16> = (1..=u16::MAX).filter(|port| set.contains(*port)).collect();
        assert_eq!(has, [80, 443, 8000, 8001, 8002]);
        assert_eq!("".parse(), Ok(PortSet::default()));
        for wrong in ["0", "80,", "80;443", "90-80", "65536", "1-65536", "-5", "http", "*"] {
            assert!(wrong.parse::<PortSet>().is_err(), "{wrong}");
        }
        assert!(vec!["80"; RANGES_MAX + 1].join(",").parse::<PortSet>().is_err());
    }

    #[test]
    fn nobody_may_by_default() {
        let none = NodePermissions::default();
        let problem = none.check_namespace("default").unwrap_err();
        assert!(problem.message.contains("nodeMode.namespaces"), "{}", problem.message);
        let problem = none.check_port(&Port { protocol: Transport::Tcp, port: 80 }).unwrap_err();
        assert_eq!(problem.reason, Reason::NodeModeNotAllowed);
        assert!(problem.message.contains("80/TCP") && problem.message.contains("nodeMode.ports"));
    }

    proptest! {
        #[test]
        fn port_that_nodes_need_is_refused_whatever_is_allowed(port in 1u16.., udp: bool) {
            let protocol = if udp { Transport::Udp } else { Transport::Tcp };
            let all = NodePermissions {
                ports: "1-65535".parse().unwrap(),
                reserved: "8443".parse().unwrap(),
                ..NodePermissions::default()
            };
            let needed = [22, 179, 2379, 2380, 6443, 8443, 10_250, 10_256, 10_259].contains(&port)
                || (30_000..=32_767).contains(&port);
            let checked = all.check_port(&Port { protocol, port });
            if needed {
                prop_assert_eq!(&checked.clone().unwrap_err().reason, "PortReserved");
            }
            let is_reserved = needed || RESERVED.iter().any(|range| range.contains(&port));
            prop_assert_eq!(checked.is_err(), is_reserved);
        }
    }
}
