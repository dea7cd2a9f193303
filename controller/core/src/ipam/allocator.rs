//! The choice of an address, of all networks and all claims.

mod strangers;
mod subnet;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use lb_svc_crds::SubnetSpec;
use lb_svc_crds::names::Provider;

use super::known::Known;
use super::overlap;
use super::{AddressRequest, AllocationError, Claim, InvalidSubnet, Network, Pool, Reservation, Rules};
use strangers::Strangers;
use subnet::Subnet;
pub use view::Usage;

/// What is reserved for a claim that is being made.
#[derive(Debug)]
struct Reserved {
    subnet: String,
    provider: Provider,
    address: IpAddr,
    /// The namespace of the Service that it is for.
    namespace: String,
}

/// All Subnets and all claims as last seen, and what is reserved.
#[derive(Debug, Default)]
pub struct Allocator {
    subnets: BTreeMap<String, Subnet>,
    /// To whom they hand out addresses, by name.
    rules: BTreeMap<String, Rules>,
    claims: Known<Claim>,
    /// Reservations by the names of their claims.
    reserved: HashMap<String, Reserved>,
    /// IP objects that are no claims, by name.
    strangers: Strangers,
    nodes: BTreeMap<String, Vec<Ipv4Addr>>,
    /// What attachments are on, where that is known: two on one L2 segment share
    /// their addresses.
    l2_segments: HashMap<Provider, String>,
}

impl Allocator {
    /// A Subnet is as `spec` says. Returns the Subnets for which that changes
    /// something.
    pub fn set_subnet(
        &mut self,
        name: &str,
        spec: &SubnetSpec,
        created: Option<jiff::Timestamp>,
        deleting: bool,
    ) -> Vec<String> {
        if let Some(known) = self.subnets.get_mut(name)
            && known.spec == *spec
        {
            let changed = std::mem::replace(&mut known.deleting, deleting) != deleting;
            return if changed { vec![name.to_owned()] } else { Vec::new() };
        }
        let parsed = Network::parse(spec).map(|network| {
            let pool = self.pool(&network);
            (network, pool)
        });
        let age = (created, name.to_owned());
        let subnet = Subnet { spec: spec.clone(), age, deleting, parsed, overlaps: None };
        self.subnets.insert(name.to_owned(), subnet);
        let mut changed = self.find_overlaps();
        if !changed.iter().any(|other| other == name) {
            changed.push(name.to_owned());
        }
        changed
    }

    /// A Subnet hands out addresses by these rules. Returns whether that is news.
    pub fn set_rules(&mut self, name: &str, rules: Rules) -> bool {
        self.rules.insert(name.to_owned(), rules).unwrap_or_default() != rules
    }

    fn rules(&self, subnet: &str) -> Rules {
        self.rules.get(subnet).copied().unwrap_or_default()
    }

    /// A Subnet is gone. Returns the others for which that changes something.
    pub fn remove_subnet(&mut self, name: &str) -> Vec<String> {
        self.rules.remove(name);
        self.subnets.remove(name);
        self.find_overlaps()
    }

    /// An attachment is on this L2 segment; `None` if that is not known. Where it was
    /// known and has addresses in use, it stays as it was: what runs on the segment
    /// does not leave it with the attachment's object. Returns the Subnets for which
    /// that changes something.
    pub fn set_l2_segment(&mut self, provider: &Provider, l2_segment: Option<String>) -> Vec<String> {
        let before = self.l2_segments.get(provider).cloned();
        match l2_segment {
            Some(l2_segment) => {
                self.l2_segments.insert(provider.clone(), l2_segment);
            }
            None if self.claims().any(|claim| claim.provider == *provider) => {}
            None => {
                self.l2_segments.remove(provider);
            }
        }
        if before == self.l2_segments.get(provider).cloned() {
            return self.find_overlaps();
        }
        // Addresses may have become free in all of them.
        self.make_pools();
        self.find_overlaps();
        self.subnets.keys().cloned().collect()
    }

    /// Makes all pools anew.
    fn make_pools(&mut self) {
        let networks: Vec<(String, Network)> = self
            .subnets
            .iter()
            .filter_map(|(name, subnet)| Some((name.clone(), subnet.network()?.clone())))
            .collect();
        for (name, network) in networks {
            let pool = self.pool(&network);
            if let Some(subnet) = self.subnets.get_mut(&name) {
                subnet.parsed = Ok((network, pool));
            }
        }
    }

    /// Whether two attachments are on one L2 segment, and so share their addresses.
    /// One whose segment is not known is on a segment of its own.
    fn share_segment(&self, one: &Provider, other: &Provider) -> bool {
        let segment = |provider| self.l2_segments.get(provider);
        one == other || segment(one).is_some_and(|known| segment(other) == Some(known))
    }

    /// The attachments on the L2 segment of `provider`, itself among them.
    fn on_segment_of(&self, provider: &Provider) -> BTreeSet<Provider> {
        let others = self.l2_segments.keys().filter(|other| self.share_segment(provider, other));
        others.chain([provider]).cloned().collect()
    }

    /// Claims of a Subnet have come or gone. Returns the Subnets for which that changes
    /// whether they are valid.
    pub fn settle_overlaps(&mut self, subnet: &str) -> Vec<String> {
        let concerns = |(name, other): (&String, &Subnet)| match &other.overlaps {
            Some(InvalidSubnet::Overlaps(_, valid)) => name == subnet || valid == subnet,
            _ => false,
        };
        if self.subnets.iter().any(concerns) { self.find_overlaps() } else { Vec::new() }
    }

    /// Finds anew which Subnets overlap another that precedes them; returns those for
    /// which that changes something.
    fn find_overlaps(&mut self) -> Vec<String> {
        let parsed = self.subnets.values().filter_map(|subnet| Some((&subnet.age, subnet.network()?)));
        let has_claims = |subnet: &str, within: Ipv4Net| {
            let own = self.claims().filter(|claim| claim.subnet == subnet);
            own.map(|claim| claim.address)
                .any(|address| matches!(address, IpAddr::V4(v4) if within.contains(&v4)))
        };
        let share = |one: &Provider, other: &Provider| self.share_segment(one, other);
        let mut overlaps = overlap::find(parsed, share, has_claims);
        let mut changed = Vec::new();
        for (name, subnet) in &mut self.subnets {
            let found = overlaps.remove(name);
            if subnet.overlaps != found {
                subnet.overlaps = found;
                changed.push(name.clone());
            }
        }
        changed
    }

    /// A node has these addresses. Returns whether that is news.
    pub fn set_node(&mut self, name: &str, addresses: Vec<Ipv4Addr>) -> bool {
        let before = self.nodes.remove(name).unwrap_or_default();
        let only = |these: &[Ipv4Addr], others: &[Ipv4Addr]| -> Vec<Ipv4Addr> {
            these.iter().filter(|address| !others.contains(address)).copied().collect()
        };
        let (new, gone, changed) =
            (only(&addresses, &before), only(&before, &addresses), before != addresses);
        if !addresses.is_empty() {
            self.nodes.insert(name.to_owned(), addresses);
        }
        // What stays keeps its place in the pools, which are not made anew.
        for address in new {
            self.subnets.values_mut().for_each(|subnet| subnet.change(None, address, Pool::take));
        }
        for address in gone {
            let networks = self.subnets.values().filter_map(Subnet::network);
            let providers: BTreeSet<Provider> = networks.map(|network| network.provider.clone()).collect();
            providers.iter().for_each(|provider| self.give_back(provider, address.into()));
        }
        changed
    }

    /// The free addresses of `network`: no claim, reservation, other object or node
    /// has them.
    fn pool(&self, network: &Network) -> Pool {
        let mut pool = Pool::new(network);
        let claimed = self.claims().map(|claim| (&claim.provider, claim.address));
        let reserved = self.reserved.values().map(|reserved| (&reserved.provider, reserved.address));
        for (provider, address) in claimed.chain(reserved).chain(self.strangers.addresses()) {
            if let (true, IpAddr::V4(address)) = (self.share_segment(provider, &network.provider), address) {
                pool.take(address);
            }
        }
        for address in self.nodes.values().flatten() {
            pool.take(*address);
        }
        pool
    }

    /// A claim exists: the watch shows it (`confirmed`), or the API server
    /// answered so to our own write. Returns whether that is news.
    pub fn apply(&mut self, claim: Claim, confirmed: bool) -> bool {
        let name = claim.id.name.clone();
        self.reserved.remove(&name);
        self.strangers.remove(&name);
        if self.claims.has(&claim, confirmed) {
            return false;
        }
        self.remove_entry(&name);
        self.each_pool(&claim.provider, claim.address, Pool::take);
        self.claims.insert(claim, confirmed);
        true
    }

    /// The claim with this name and uid is gone. Returns it, if it was known.
    pub fn remove(&mut self, name: &str, uid: &str) -> Option<Claim> {
        if self.claims.knows(name, uid) { self.remove_entry(name) } else { None }
    }

    /// There is an IP object with this name and uid that is no claim: no claim of
    /// that name can be made. One that was a claim stays what it was.
    pub fn set_stranger(&mut self, name: &str, uid: &str) {
        if !self.claims.knows(name, uid) {
            self.strangers.set(name, uid);
        }
    }

    /// Whether there is an IP object of this name that is no claim.
    pub fn is_stranger(&self, name: &str) -> bool {
        self.strangers.has(name)
    }

    /// The IP object with this name and uid, which is no claim, is gone. Returns
    /// whether it was known.
    pub fn remove_stranger(&mut self, name: &str, uid: &str) -> bool {
        self.strangers.is(name, uid) && self.forget_stranger(name)
    }

    /// The watch listed all IP objects anew. Returns whether any that is no claim
    /// is gone.
    pub fn retain_strangers(&mut self, listed: &BTreeSet<String>) -> bool {
        self.strangers.missing(listed).iter().filter(|name| self.forget_stranger(name)).count() > 0
    }

    fn forget_stranger(&mut self, name: &str) -> bool {
        let Some(address) = self.strangers.remove(name) else { return false };
        if let Some((provider, address)) = address {
            self.give_back(&provider, address);
        }
        true
    }

    /// The watch listed all claims anew: those it did not name are gone, but
    /// for our own that it cannot have seen yet. Returns the ones gone.
    pub fn retain(&mut self, listed: &BTreeSet<String>) -> Vec<Claim> {
        let gone = self.claims.unlisted(listed);
        gone.iter().filter_map(|name| self.remove_entry(name)).collect()
    }

    fn remove_entry(&mut self, name: &str) -> Option<Claim> {
        let claim = self.claims.remove(name)?;
        self.give_back(&claim.provider, claim.address);
        Some(claim)
    }

    /// Chooses and reserves an address.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn reserve(&mut self, request: &AddressRequest) -> Result<Reservation, AllocationError> {
        let namespace = &request.owner.service.namespace;
        if let Some(limit) = request.limit.filter(|limit| self.others_of_namespace(request) >= *limit) {
            return Err(AllocationError::NamespaceFull(namespace.clone(), limit));
        }
        loop {
            let (subnet, address) = match request.address {
                Some(address) => (self.containing(request, address)?, address),
                None => self.any(request)?,
            };
            let name = request.provider.claim_name(address);
            let provider = request.provider.clone();
            self.each_pool(&provider, address, Pool::take);
            // Not `containing`, which refuses it: the next one is tried.
            if self.strangers.has(&name) {
                self.strangers.keep(&name, provider, address);
                continue;
            }
            let reserved =
                Reserved { subnet: subnet.clone(), provider, address, namespace: namespace.clone() };
            self.reserved.insert(name.clone(), reserved);
            return Ok(Reservation { name, subnet, address });
        }
    }

    /// Drops a reservation whose claim was not made.
    pub fn unreserve(&mut self, reservation: &Reservation) {
        if let Some(Reserved { provider, address, .. }) = self.reserved.remove(&reservation.name) {
            self.give_back(&provider, address);
        }
    }

    /// How many addresses other Services of the namespace have claimed or
    /// reserved, or left kept.
    fn others_of_namespace(&self, request: &AddressRequest) -> usize {
        let service = &request.owner.service;
        let others = self.claims.holders();
        let claimed = others.filter(|(other, _)| other.namespace == service.namespace && *other != service);
        let reserved = self.reserved.values().filter(|reserved| reserved.namespace == service.namespace);
        claimed.map(|(_, count)| count).sum::<usize>() + reserved.count()
    }

    /// Gives back an address to the pools of `provider`, unless something has it.
    fn give_back(&mut self, provider: &Provider, address: IpAddr) {
        let shared = self.on_segment_of(provider);
        let mut names = shared.iter().map(|provider| provider.claim_name(address));
        let a_node = || self.nodes.values().flatten().any(|node| IpAddr::V4(*node) == address);
        let is_used = names.any(|name| {
            self.claims.get(&name).is_some()
                || self.reserved.contains_key(&name)
                || self.strangers.keeps(&name)
        });
        if !is_used && !a_node() {
            self.each_pool(provider, address, Pool::release);
        }
    }

    fn each_pool(&mut self, provider: &Provider, address: IpAddr, change: fn(&mut Pool, Ipv4Addr)) {
        let IpAddr::V4(address) = address else { return };
        let shared = self.on_segment_of(provider);
        self.subnets.values_mut().for_each(|subnet| subnet.change(Some(&shared), address, change));
    }

    /// The Subnets that may serve `request`, by name.
    fn eligible(&self, request: &AddressRequest) -> Result<Vec<(&String, &Network, &Pool)>, AllocationError> {
        let mut eligible = Vec::new();
        let mut error = AllocationError::NoSubnet(request.provider.clone());
        for (name, subnet) in &self.subnets {
            let asked = request.subnet.as_ref() == Some(name);
            if request.subnet.is_some() && !asked {
                continue;
            }
            match subnet.state() {
                Ok((network, _)) if network.provider != request.provider => {
                    if asked {
                        error = AllocationError::OtherProvider(name.clone(), request.provider.clone());
                    }
                }
                Ok(_) if subnet.deleting => error = AllocationError::Deleting(name.clone()),
                Ok((network, _)) if !network.admits(&request.owner.service.namespace) => {
                    error =
                        AllocationError::NotAdmitted(name.clone(), request.owner.service.namespace.clone());
                }
                Ok((network, pool)) => eligible.push((name, network, pool)),
                Err(invalid) if asked || subnet.spec.provider == request.provider.to_string() => {
                    error = AllocationError::InvalidSubnet(name.clone(), invalid.clone());
                }
                Err(_) => {}
            }
        }
        if let (AllocationError::NoSubnet(_), Some(name)) = (&error, &request.subnet) {
            error =
                AllocationError::UnknownSubnet(name.clone(), request.provider.annotation("logical_switch"));
        }
        if eligible.is_empty() { Err(error) } else { Ok(eligible) }
    }

    fn any(&self, request: &AddressRequest) -> Result<(String, IpAddr), AllocationError> {
        let mut eligible = self.eligible(request)?;
        if request.subnet.is_none() {
            let all = name_all(&eligible);
            eligible.retain(|(name, ..)| self.rules(name).auto_assign);
            if eligible.is_empty() {
                return Err(AllocationError::OnRequestOnly(all));
            }
        }
        eligible.sort_by_key(|(name, ..)| self.rules(name).order());
        for (name, _, pool) in &eligible {
            if let Some(address) = pool.next() {
                return Ok(((*name).clone(), address.into()));
            }
        }
        Err(AllocationError::Full(name_all(&eligible)))
    }

    fn containing(&self, request: &AddressRequest, address: IpAddr) -> Result<String, AllocationError> {
        let eligible = self.eligible(request)?;
        let IpAddr::V4(v4) = address else {
            return Err(AllocationError::Outside(address, name_all(&eligible)));
        };
        let Some((name, network, _)) = eligible.iter().find(|(_, network, _)| network.cidr.contains(&v4))
        else {
            return Err(AllocationError::Outside(address, name_all(&eligible)));
        };
        let not_assignable = |what: String| Err(AllocationError::NotAssignable(address, what));
        if v4 == network.gateway {
            return not_assignable(format!("the gateway of Subnet {name}"));
        }
        let (first, last) = network.hosts();
        if v4 < first {
            return not_assignable(format!("the network address of Subnet {name}"));
        }
        if v4 > last {
            return not_assignable(format!("the broadcast address of Subnet {name}"));
        }
        if self.nodes.values().any(|addresses| addresses.contains(&v4)) {
            return not_assignable("the address of a node of the cluster".to_owned());
        }
        for provider in self.on_segment_of(&request.provider) {
            let claim_name = provider.claim_name(address);
            if let Some(claim) = self.claims.get(&claim_name) {
                let (owner, own) = (&claim.owner.service, &request.owner.service);
                // It may move its address to another attachment of the segment.
                if claim.owner.uid == request.owner.uid && provider != request.provider {
                    continue;
                }
                if owner == own {
                    return Err(AllocationError::BeingFreed(address));
                }
                // Tenants are not told each other's names.
                let is_near = owner.namespace == own.namespace;
                return Err(AllocationError::Taken(address, is_near.then(|| owner.name.clone())));
            }
            if self.strangers.has(&claim_name) {
                return Err(AllocationError::NoClaim(address, claim_name));
            }
            if self.reserved.contains_key(&claim_name) {
                return Err(AllocationError::Taken(address, None));
            }
        }
        Ok((*name).clone())
    }
}

fn name_all(subnets: &[(&String, &Network, &Pool)]) -> String {
    let names: Vec<String> =
        subnets.iter().map(|(name, network, _)| format!("Subnet {name} ({})", network.cidr)).collect();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::Requested;

    use super::*;
    use crate::ipam::ClaimId;
    use crate::model::{ServiceId, ServiceRef};
    use crate::testing::subnet_spec as spec;

    fn owner(name: &str) -> ServiceId {
        ServiceId { service: ServiceRef::new("default", name), uid: format!("uid-{name}") }
    }

    fn request(name: &str, address: Option<&str>) -> AddressRequest {
        AddressRequest {
            owner: owner(name),
            provider: "lan.kube-system".parse().unwrap(),
            subnet: None,
            address: address.map(|address| address.parse().unwrap()),
            keep: false,
            limit: None,
        }
    }

    fn claim(request: &AddressRequest, reservation: &Reservation) -> Claim {
        Claim {
            id: ClaimId {
                name: reservation.name.clone(),
                uid: format!("u-{}", reservation.name),
                resource_version: "1".into(),
            },
            provider: request.provider.clone(),
            subnet: reservation.subnet.clone(),
            address: reservation.address,
            owner: request.owner.clone(),
            requested: Requested::Dynamic,
            mac: String::new(),
            keep: false,
            probed: false,
            conflict: String::new(),
            gateway_namespace: request.owner.service.namespace.clone(),
        }
    }

    fn allocator() -> Allocator {
        let mut allocator = Allocator::default();
        allocator.set_subnet(
            "lan",
            &spec("172.18.0.0/16", "172.18.0.1", &["172.18.0.0..172.18.0.10"]),
            None,
            false,
        );
        allocator
    }

    #[test]
    fn r5_namespace_has_no_more_addresses_than_it_may() {
        let mut allocator = allocator();
        let asks = |name: &str| AddressRequest { limit: Some(2), ..request(name, None) };
        let first = allocator.reserve(&asks("a")).unwrap();
        allocator.apply(claim(&asks("a"), &first), true);
        let second = allocator.reserve(&asks("b")).unwrap();
        let full = AllocationError::NamespaceFull("default".into(), 2);
        assert_eq!(allocator.reserve(&asks("c")), Err(full), "one is claimed, one reserved");
        assert!(allocator.reserve(&asks("a")).is_ok(), "who has one may change it");
        allocator.unreserve(&second);
        let mut elsewhere = asks("c");
        elsewhere.owner.service.namespace = "other".into();
        assert!(allocator.reserve(&elsewhere).is_ok());
    }

    #[test]
    fn address_is_allocated_once() {
        let mut allocator = allocator();
        let first = allocator.reserve(&request("a", None)).unwrap();
        assert_eq!(first.name, "lan.kube-system.172.18.0.11");
        let second = allocator.reserve(&request("b", None)).unwrap();
        assert_eq!(second.address.to_string(), "172.18.0.12", "a reservation counts");
        allocator.unreserve(&first);
        assert_eq!(allocator.usage("lan").unwrap().available, 65523);

        allocator.apply(claim(&request("b", None), &second), false);
        let error = allocator.reserve(&request("c", Some("172.18.0.12"))).unwrap_err();
        assert_eq!(error, AllocationError::Taken("172.18.0.12".parse().unwrap(), Some("b".into())));
    }

    #[test]
    fn static_request_is_checked_against_the_subnet() {
        let mut allocator = allocator();
        allocator.set_node("n1", vec!["172.18.0.2".parse().unwrap()]);
        let mut reason = |address: &str| match allocator.reserve(&request("a", Some(address))) {
            Ok(reservation) => reservation.subnet,
            Err(error) => error.to_string(),
        };
        assert_eq!(reason("172.18.0.5"), "lan", "an excluded address is reserved for who names it");
        assert_eq!(reason("172.18.0.1"), "172.18.0.1 is the gateway of Subnet lan and cannot be a Service's");
        assert_eq!(
            reason("172.18.0.2"),
            "172.18.0.2 is the address of a node of the cluster and cannot be a Service's"
        );
        assert!(reason("172.18.0.0").contains("network address"));
        assert!(reason("172.18.255.255").contains("broadcast address"));
        assert_eq!(reason("172.19.0.1"), "172.19.0.1 is not an address of Subnet lan (172.18.0.0/16)");
        assert!(reason("fd00::1").contains("not an address of"));
    }

    #[test]
    fn r46_holder_is_named_within_its_namespace_only_and_no_node_is() {
        let mut allocator = allocator();
        allocator.set_node("rack-7", vec!["172.18.0.2".parse().unwrap()]);
        let holder = request("payments", Some("172.18.0.12"));
        let reservation = allocator.reserve(&holder).unwrap();
        let mut told = |namespace: &str, address: &str| {
            let mut asked = request("a", Some(address));
            asked.owner.service.namespace = namespace.to_owned();
            allocator.reserve(&asked).unwrap_err().to_string()
        };
        assert_eq!(told("default", "172.18.0.12"), "172.18.0.12 belongs to another Service");
        assert!(!told("default", "172.18.0.2").contains("rack-7"));
        allocator.apply(claim(&holder, &reservation), true);
        let mut told = |namespace: &str| {
            let mut asked = request("a", Some("172.18.0.12"));
            asked.owner.service.namespace = namespace.to_owned();
            allocator.reserve(&asked).unwrap_err().to_string()
        };
        assert_eq!(told("default"), "172.18.0.12 belongs to Service payments");
        assert_eq!(told("tenant-b"), "172.18.0.12 belongs to another Service");
    }

    #[test]
    fn node_address_is_never_allocated() {
        let mut allocator = allocator();
        assert!(allocator.set_node("n1", vec!["172.18.0.11".parse().unwrap()]));
        assert!(!allocator.set_node("n1", vec!["172.18.0.11".parse().unwrap()]));
        assert_eq!(allocator.reserve(&request("a", None)).unwrap().address.to_string(), "172.18.0.12");
        allocator.set_node("n1", Vec::new());
        assert!(allocator.reserve(&request("b", Some("172.18.0.11"))).is_ok());
    }

    #[test]
    fn r34_node_that_comes_or_goes_leaves_the_order_and_what_others_have() {
        let mut allocator = Allocator::default();
        allocator.set_subnet("lan", &spec("10.0.0.0/28", "10.0.0.1", &[]), None, false);
        let next = |allocator: &mut Allocator| {
            let reservation = allocator.reserve(&request("x", None)).unwrap();
            allocator.unreserve(&reservation);
            reservation.address.to_string()
        };
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(next(&mut allocator), "10.0.0.2");
        allocator.set_node("n1", vec![ip("10.0.0.9"), ip("10.0.0.3")]);
        assert_eq!(next(&mut allocator), "10.0.0.4", "one that was freed is the last");
        allocator.set_node("n1", vec![ip("10.0.0.9")]);
        assert_eq!(next(&mut allocator), "10.0.0.5", "so is a node's");
        let available = |allocator: &Allocator| allocator.usage("lan").unwrap().available;
        assert_eq!(available(&allocator), 12);

        // An address that a claim, a reservation or another node has stays taken.
        let (a, b) = (request("a", Some("10.0.0.6")), request("b", Some("10.0.0.7")));
        let claimed = allocator.reserve(&a).unwrap();
        allocator.apply(claim(&a, &claimed), true);
        allocator.reserve(&b).unwrap();
        allocator.set_node("n2", ["10.0.0.6", "10.0.0.7", "10.0.0.9"].map(ip).into());
        allocator.set_node("n2", Vec::new());
        assert_eq!(available(&allocator), 10);
    }

    #[test]
    fn r40_address_that_an_object_other_than_a_claim_has_is_passed_over_and_named() {
        let mut allocator = Allocator::default();
        allocator.set_subnet("lan", &spec("10.0.0.0/29", "10.0.0.1", &[]), None, false);
        let name = "lan.kube-system.10.0.0.2";
        allocator.set_stranger(name, "u");
        let asked = request("a", Some("10.0.0.2"));
        let error = allocator.reserve(&asked).unwrap_err();
        assert_eq!(error, AllocationError::NoClaim("10.0.0.2".parse().unwrap(), name.to_owned()));
        assert_eq!(error.reason().as_str(), "AddressInUse");
        assert_eq!(allocator.reserve(&request("b", None)).unwrap().address.to_string(), "10.0.0.3");
        // However often Subnets are made anew.
        allocator.set_subnet("lan", &spec("10.0.0.0/28", "10.0.0.1", &[]), None, false);
        assert_eq!(allocator.reserve(&request("c", None)).unwrap().address.to_string(), "10.0.0.4");
        assert!(!allocator.remove_stranger(name, "another"));
        assert!(allocator.remove_stranger(name, "u"));
        let reservation = allocator.reserve(&asked).unwrap();

        // A claim that is spoiled stays one; an object that is corrected becomes one.
        let mine = claim(&asked, &reservation);
        allocator.set_stranger(name, "u");
        allocator.apply(mine.clone(), true);
        allocator.set_stranger(name, &mine.id.uid);
        assert!(matches!(
            allocator.reserve(&request("d", Some("10.0.0.2"))),
            Err(AllocationError::Taken(..))
        ));
        assert_eq!(allocator.remove(name, &mine.id.uid), Some(mine));
        assert!(allocator.reserve(&asked).is_ok());
    }

    /// Subnets `a` and `b` of two attachments of one L2 segment, the first the older.
    fn of_one_segment(a: &str, b: &str) -> Allocator {
        let mut allocator = Allocator::default();
        for (name, provider, cidr, created) in [("a", "lan", a, 1), ("b", "other", b, 2)] {
            let provider = format!("{provider}.kube-system");
            allocator.set_l2_segment(&provider.parse().unwrap(), Some("macvlan eth0".into()));
            let spec = SubnetSpec { provider, ..spec(cidr, "", &[]) };
            let created = jiff::Timestamp::from_second(created).ok();
            allocator.set_subnet(name, &spec, created, false);
        }
        allocator
    }

    fn asks_of(provider: &str, name: &str, address: Option<&str>) -> AddressRequest {
        AddressRequest {
            provider: format!("{provider}.kube-system").parse().unwrap(),
            ..request(name, address)
        }
    }

    #[test]
    fn r14_claims_exclude_on_every_attachment_of_the_segment() {
        let mut allocator = of_one_segment("10.0.0.0/24", "10.0.1.0/24");
        let theirs = asks_of("other", "theirs", Some("10.0.1.2"));
        let reservation = allocator.reserve(&theirs).unwrap();
        allocator.apply(claim(&theirs, &reservation), true);
        // Its Subnet shrinks around it, and the first one's grows over it.
        let spec_of = |provider: &str, cidr: &str| SubnetSpec {
            provider: format!("{provider}.kube-system"),
            ..spec(cidr, "", &[])
        };
        allocator.set_subnet("b", &spec_of("other", "10.0.2.0/24"), None, false);
        allocator.set_subnet("a", &spec_of("lan", "10.0.1.0/24"), None, false);
        let asks = asks_of("lan", "ours", Some("10.0.1.2"));
        assert_eq!(
            allocator.reserve(&asks),
            Err(AllocationError::Taken("10.0.1.2".parse().unwrap(), Some("theirs".into())))
        );
        let any = allocator.reserve(&asks_of("lan", "ours", None)).unwrap();
        assert_eq!(any.address.to_string(), "10.0.1.3", "the first that is free");
        // The same Service may move its address to the other attachment.
        assert!(allocator.reserve(&asks_of("lan", "theirs", Some("10.0.1.2"))).is_ok());
    }

    #[test]
    fn r14_subnet_that_has_claims_precedes_an_older_one_that_was_edited_over_it() {
        let mut allocator = of_one_segment("10.0.0.0/24", "10.0.1.0/24");
        let theirs = asks_of("other", "theirs", None);
        let reservation = allocator.reserve(&theirs).unwrap();
        let held = claim(&theirs, &reservation);
        allocator.apply(held.clone(), true);
        let mut wide = spec("10.0.0.0/23", "", &[]);
        wide.provider = "lan.kube-system".into();
        let created = jiff::Timestamp::from_second(1).ok();
        assert_eq!(allocator.set_subnet("a", &wide, created, false), ["a"]);
        let invalid = |allocator: &Allocator, name: &str| allocator.usage(name).unwrap().invalid.is_some();
        assert!(invalid(&allocator, "a") && !invalid(&allocator, "b"));
        // With the claim its precedence goes.
        allocator.remove(&held.id.name, &held.id.uid);
        assert_eq!(allocator.settle_overlaps("b"), ["a", "b"]);
        assert!(!invalid(&allocator, "a") && invalid(&allocator, "b"));
    }

    #[test]
    fn r14_segment_is_remembered_while_addresses_on_it_are_in_use() {
        let mut allocator = of_one_segment("10.0.0.0/24", "10.0.1.0/24");
        let theirs = asks_of("other", "theirs", None);
        let reservation = allocator.reserve(&theirs).unwrap();
        allocator.apply(claim(&theirs, &reservation), true);
        allocator.set_l2_segment(&"other.kube-system".parse().unwrap(), None);
        let mut over = spec("10.0.1.0/24", "", &[]);
        over.provider = "lan.kube-system".into();
        allocator.set_subnet("c", &over, jiff::Timestamp::from_second(3).ok(), false);
        assert!(allocator.usage("c").unwrap().invalid.is_some(), "the gateways are on the wire still");
    }

    #[test]
    fn subnet_is_chosen_by_name_and_order() {
        let mut allocator = Allocator::default();
        assert_eq!(allocator.reserve(&request("a", None)).unwrap_err().reason().as_str(), "SubnetNotFound");
        allocator.set_subnet("b-lan", &spec("10.0.2.0/24", "", &[]), None, false);
        allocator.set_subnet("a-lan", &spec("10.0.1.0/30", "", &[]), None, false);
        let mut other = spec("10.0.3.0/24", "", &[]);
        other.provider = "other.kube-system".into();
        allocator.set_subnet("other", &other, None, false);

        assert_eq!(
            allocator.reserve(&request("a", None)).unwrap().address.to_string(),
            "10.0.1.2",
            "first by name"
        );
        assert_eq!(allocator.reserve(&request("b", None)).unwrap().subnet, "b-lan", "a-lan is full");
        assert_eq!(
            allocator.reserve(&request("c", Some("10.0.2.9"))).unwrap().subnet,
            "b-lan",
            "by the address"
        );
        let by_name = |name: &str| AddressRequest { subnet: Some(name.into()), ..request("d", None) };
        assert_eq!(allocator.reserve(&by_name("a-lan")).unwrap_err().reason().as_str(), "SubnetFull");
        assert!(matches!(allocator.reserve(&by_name("other")), Err(AllocationError::OtherProvider(..))));
        assert!(matches!(allocator.reserve(&by_name("nowhere")), Err(AllocationError::UnknownSubnet(..))));
        assert!(matches!(
            allocator
                .reserve(&AddressRequest { subnet: Some("a-lan".into()), ..request("e", Some("10.0.2.7")) }),
            Err(AllocationError::Outside(..))
        ));
    }

    #[test]
    fn subnet_is_chosen_by_its_rules() {
        let mut allocator = Allocator::default();
        for (name, cidr) in
            [("a", "10.0.1.0/30"), ("b", "10.0.2.0/30"), ("c", "10.0.3.0/30"), ("d", "10.0.4.0/30")]
        {
            let of = spec(cidr, &cidr.replace("0/30", "1"), &[]);
            allocator.set_subnet(name, &of, None, false);
        }
        let rule = |priority, auto_assign| Rules { priority, auto_assign };
        assert!(allocator.set_rules("b", rule(20, true)));
        assert!(!allocator.set_rules("b", rule(20, true)), "no news");
        allocator.set_rules("c", rule(10, true));
        allocator.set_rules("d", rule(1, false));
        let mut taken = |request: &AddressRequest| {
            let reservation = allocator.reserve(request)?;
            allocator.apply(claim(request, &reservation), true);
            Ok(reservation.subnet)
        };
        // Each has one address.
        let by_chance: Vec<_> = (0..4).map(|n| taken(&request(&format!("web-{n}"), None))).collect();
        let full: Result<String, AllocationError> = Err(AllocationError::Full(
            "Subnet c (10.0.3.0/30) or Subnet b (10.0.2.0/30) or Subnet a (10.0.1.0/30)".into(),
        ));
        assert_eq!(by_chance, [Ok("c".to_owned()), Ok("b".to_owned()), Ok("a".to_owned()), full]);
        let named = AddressRequest { subnet: Some("d".into()), ..request("named", None) };
        assert_eq!(taken(&named), Ok("d".to_owned()));

        let mut alone = Allocator::default();
        alone.set_subnet("d", &spec("10.0.4.0/29", "10.0.4.1", &[]), None, false);
        alone.set_rules("d", rule(0, false));
        let refused = alone.reserve(&request("web", None)).unwrap_err();
        assert_eq!(refused.reason().as_str(), "SubnetNotFound");
        assert!(refused.to_string().contains("auto-assign"), "{refused}");
        assert_eq!(alone.reserve(&request("web", Some("10.0.4.3"))).unwrap().subnet, "d");
    }

    #[test]
    fn namespace_is_admitted_by_subnet() {
        let mut allocator = Allocator::default();
        let closed = SubnetSpec { namespaces: vec!["shop".into()], ..spec("10.0.1.0/24", "", &[]) };
        allocator.set_subnet("closed", &closed, None, false);
        assert_eq!(
            allocator.reserve(&request("a", None)).unwrap_err().reason().as_str(),
            "NamespaceNotAllowed"
        );
        allocator.set_subnet("gone", &spec("10.0.2.0/24", "", &[]), None, true);
        let gone = AddressRequest { subnet: Some("gone".into()), ..request("a", None) };
        assert_eq!(allocator.reserve(&gone).unwrap_err().reason().as_str(), "SubnetDeleting");
        allocator.set_subnet("bad", &spec("10.0.2.0/33", "", &[]), None, false);
        let bad = AddressRequest { subnet: Some("bad".into()), ..request("a", None) };
        assert_eq!(allocator.reserve(&bad).unwrap_err().reason().as_str(), "SubnetInvalid");
    }

    #[test]
    fn overlapping_subnets_keep_the_older() {
        let at = |second| jiff::Timestamp::from_second(second).ok();
        let mut allocator = Allocator::default();
        allocator.set_subnet("b-new", &spec("10.0.0.0/16", "", &[]), at(2), false);
        let changed = allocator.set_subnet("c-old", &spec("10.0.1.0/24", "", &[]), at(1), false);
        assert_eq!(changed, ["b-new", "c-old"]);
        assert!(
            matches!(allocator.usage("b-new").unwrap().invalid, Some(InvalidSubnet::Overlaps(_, other)) if other == "c-old")
        );
        assert_eq!(allocator.reserve(&request("a", None)).unwrap().subnet, "c-old");

        // Another attachment: no matter, until it is known to be on the same L2 segment.
        let mut other = spec("10.0.1.0/24", "", &[]);
        other.provider = "other.kube-system".into();
        allocator.set_subnet("other", &other, at(3), false);
        assert_eq!(allocator.usage("other").unwrap().invalid, None);
        let l2_segment = || Some("macvlan on eth0".to_owned());
        allocator.set_l2_segment(&"other.kube-system".parse().unwrap(), l2_segment());
        allocator.set_l2_segment(&"lan.kube-system".parse().unwrap(), l2_segment());
        assert!(allocator.usage("other").unwrap().invalid.is_some());

        assert_eq!(allocator.remove_subnet("c-old"), ["b-new", "other"]);
        assert_eq!(allocator.usage("b-new").unwrap().invalid, None);
        assert!(allocator.usage("other").unwrap().invalid.is_some(), "it overlaps the next older one");
    }

    #[test]
    fn usage_counts_every_claim_of_the_subnet() {
        let mut allocator = allocator();
        let request = request("a", Some("172.18.0.5"));
        let reservation = allocator.reserve(&request).unwrap();
        allocator.apply(claim(&request, &reservation), true);
        let usage = allocator.usage("lan").unwrap();
        assert_eq!(
            (usage.using, usage.available),
            (1, 65524),
            "an excluded address was not available anyway"
        );
        assert_eq!(usage.using_ranges[0].to_string(), "172.18.0.5");
    }

    #[test]
    fn changed_subnet_keeps_its_claims() {
        let mut allocator = allocator();
        let asked = request("a", None);
        let reservation = allocator.reserve(&asked).unwrap();
        allocator.apply(claim(&asked, &reservation), true);
        allocator.set_subnet(
            "lan",
            &spec("172.18.0.0/24", "172.18.0.1", &["172.18.0.0..172.18.0.10"]),
            None,
            false,
        );
        assert_eq!(allocator.reserve(&request("b", None)).unwrap().address.to_string(), "172.18.0.12");
    }

    #[test]
    fn relist_forgets_what_is_gone_but_not_own_writes() {
        let mut allocator = allocator();
        let (old, new) = (request("old", None), request("new", None));
        let old_candidate = allocator.reserve(&old).unwrap();
        allocator.apply(claim(&old, &old_candidate), true);
        let new_candidate = allocator.reserve(&new).unwrap();
        allocator.apply(claim(&new, &new_candidate), false);
        let gone = allocator.retain(&BTreeSet::new());
        assert_eq!(gone.len(), 1);
        assert_eq!(allocator.claims_of(&new.owner.service).len(), 1);
        assert!(allocator.claims_of(&old.owner.service).is_empty());
    }
}
