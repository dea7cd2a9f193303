//! The kernel's network state, with the interfaces' roles in it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

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

    /// The pod's own address, for the HTTP server.
    pub fn pod_ip(&self) -> Option<Ipv4Addr> {
        let primary = self.primary.as_ref().ok()?;
        let mut addresses = self.state.addresses.iter();
        addresses.find(|a| a.interface == primary.index && a.global).map(|a| a.address)
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
    fn pod_ip_is_the_primarys_without_a_configuration_too() {
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
        let observation = Observation::new(state, None, &[], &BTreeSet::new());
        assert_eq!((observation.lan.is_none(), observation.pod_ip()), (true, Some(address)));
    }
}
