//! The kernel's network state, with the interfaces' roles in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::config::Config;
use crate::fault::Fault;
use crate::link::network_status::{self, Network};
use crate::link::roles;
use crate::route::desired::Lan;
use crate::route::model::{Link, NetworkState};

/// What a run observes. Pure: made of the kernel's state and the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The kernel's state.
    pub state: NetworkState,
    /// The LAN interface; `None` without a configuration, which names it.
    pub lan: Option<Result<Lan, Fault>>,
    /// The primary interface.
    pub primary: Result<Link, Fault>,
}

impl Observation {
    /// Assigns the roles. `owned` are the addresses that are or were the gateway's.
    pub fn new(
        state: NetworkState,
        config: Option<&Config>,
        networks: &[Network],
        owned: &BTreeSet<Ipv4Addr>,
    ) -> Self {
        let lan = config.map(|config| find_lan(&state, &config.attachment, networks, owned));
        let index = lan.as_ref().and_then(|lan| lan.as_ref().ok()).map(|lan| lan.link.index);
        let primary = roles::primary(&state, networks, index).cloned();
        Self { state, lan, primary }
    }

    /// The pod's own addresses, for the HTTP server: the kubelet and the controller may
    /// use either family.
    pub fn pod_ips(&self) -> BTreeSet<IpAddr> {
        let Ok(primary) = &self.primary else { return BTreeSet::new() };
        let NetworkState { addresses, ipv6, .. } = &self.state;
        let ipv4 = addresses.iter().filter(|a| a.interface == primary.index && a.global);
        let ipv6 = ipv6.addresses.iter().filter(|a| a.interface == primary.index);
        let ipv6 = ipv6.map(|a| a.net.addr()).filter(|address| !address.is_unicast_link_local());
        ipv4.map(|a| IpAddr::V4(a.address)).chain(ipv6.map(IpAddr::V6)).collect()
    }
}

fn find_lan(
    state: &NetworkState,
    attachment: &str,
    networks: &[Network],
    owned: &BTreeSet<Ipv4Addr>,
) -> Result<Lan, Fault> {
    let network = match network_status::lan(networks, attachment) {
        Ok(network) => network.clone(),
        Err(pending) => networks
            .is_empty()
            .then(|| roles::presumed_lan(state, attachment, owned))
            .flatten()
            .ok_or(pending)?,
    };
    let link = state
        .link_named(&network.interface)
        .ok_or_else(|| Fault::InterfaceMissing(network.interface.clone()))?;
    let foreign_addresses = network.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    Ok(Lan { link: link.clone(), foreign_addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::desired::tests::{config, state};
    use crate::route::ipv6;
    use crate::route::model::Address;

    fn network(name: &str, interface: &str) -> Network {
        let (name, interface) = (name.to_owned(), interface.to_owned());
        Network { name, interface, ips: vec!["172.18.0.99".to_owned()], default: false }
    }

    fn observe(networks: &[Network]) -> Observation {
        Observation::new(state(), Some(&config()), networks, &BTreeSet::new())
    }

    #[test]
    fn lan_is_the_reported_interface_with_its_ipams_addresses() {
        let lan = observe(&[network("kube-system/lb-svc-attachment", "net1")]).lan.unwrap().unwrap();
        assert_eq!(lan.link.name, "net1");
        assert_eq!(lan.foreign_addresses, [Ipv4Addr::new(172, 18, 0, 99)].into());
    }

    #[test]
    fn lan_is_missing_or_pending_with_a_fault() {
        let gone = observe(&[network("kube-system/lb-svc-attachment", "net7")]);
        assert_eq!(gone.lan, Some(Err(Fault::InterfaceMissing("net7".to_owned()))));
        let other = observe(&[network("kube-system/other", "net1")]).lan.unwrap();
        assert!(matches!(other, Err(Fault::AttachmentPending { .. })), "{other:?}");
    }

    #[test]
    fn b10_pod_ips_are_the_primarys_of_both_families() {
        let mut state = state();
        let address = Ipv4Addr::new(10, 16, 0, 5);
        let plain = Address {
            interface: 2,
            address,
            prefix_len: 16,
            global: true,
            no_prefix_route: false,
            plain: true,
        };
        state.addresses = vec![Address { interface: 3, ..plain.clone() }, plain];
        let ipv6 =
            |interface, net: &str| ipv6::Address { interface, net: net.parse().unwrap(), permanent: true };
        state.ipv6.addresses =
            vec![ipv6(2, "fe80::5/64"), ipv6(3, "2001:db8:99::5/64"), ipv6(2, "fd00:10:16::5/64")];
        // Without a configuration too.
        let observation = Observation::new(state, None, &[], &BTreeSet::new());
        let expected = [IpAddr::V4(address), "fd00:10:16::5".parse().unwrap()].into();
        assert_eq!((observation.lan.is_none(), observation.pod_ips()), (true, expected));
    }
}
