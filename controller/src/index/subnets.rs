//! Subnets with their claims, and the attachments and nodes that matter to
//! them.

use std::collections::BTreeSet;

use lb_svc_core::ipam::Claim;
use lb_svc_core::model::{Attachment, Node, ObjectName, ServiceRef, Subnet};
use lb_svc_crds::names::{self, Provider};

use super::{Index, Key, concerns};

impl Index {
    /// A Subnet as last seen.
    pub fn subnet(&self, name: &str) -> Option<&Subnet> {
        self.subnets.get(name)
    }

    /// Each Subnet, and how many of its addresses are claimed and free by its
    /// status.
    pub fn subnet_usage(&self) -> Vec<(String, u64, u64)> {
        let usage =
            |(name, subnet): (&String, &Subnet)| (name.clone(), subnet.status.using, subnet.status.available);
        self.subnets.iter().map(usage).collect()
    }

    /// Whether a Subnet has the controller's finalizer is about to change, or has
    /// not changed after all.
    pub fn set_held(&mut self, name: &str, held: bool) {
        if let Some(subnet) = self.subnets.get_mut(name) {
            subnet.held = held;
        }
    }

    /// A Subnet is so; `None` if it is gone.
    pub fn set_subnet(&mut self, name: &str, subnet: Option<Subnet>) -> Vec<Key> {
        let Some(subnet) = subnet else {
            let mut concerned = self.allocator.remove_subnet(name);
            return match self.subnets.remove(name) {
                Some(_) => {
                    concerned.push(name.to_owned());
                    self.concerned_by_subnets(&concerned)
                }
                None => Vec::new(),
            };
        };
        let mut news = self.allocator.set_subnet(name, &subnet.spec, subnet.created, subnet.deleting);
        if self.allocator.set_rules(name, subnet.rules) && news.is_empty() {
            news.push(name.to_owned());
        }
        let changed = self.subnets.insert(name.to_owned(), subnet.clone()).as_ref() != Some(&subnet);
        if news.is_empty() {
            return concerns(changed, Key::Subnet(name.to_owned()));
        }
        self.concerned_by_subnets(&news)
    }

    /// The Subnets themselves, who holds addresses of them, and who waits.
    pub(super) fn concerned_by_subnets(&self, names: &[String]) -> Vec<Key> {
        if names.is_empty() {
            return Vec::new();
        }
        let holders = self.allocator.claims().filter(|claim| names.contains(&claim.subnet));
        let holders = holders.map(|claim| self.key_of(&claim.owner.service));
        names.iter().map(|name| Key::Subnet(name.clone())).chain(holders).chain(self.waiting_keys()).collect()
    }

    /// The watch shows this claim.
    pub fn set_claim(&mut self, claim: Claim) -> Vec<Key> {
        let address = claim.address;
        let subnet = claim.subnet.clone();
        let mut keys = vec![self.key_of(&claim.owner.service), Key::Subnet(subnet.clone())];
        if !self.allocator.apply(claim, true) {
            return Vec::new();
        }
        let settled = self.allocator.settle_overlaps(&subnet);
        keys.extend(self.concerned_by_subnets(&settled));
        // One that serves the address without a claim gives way.
        let serves =
            |name: &&ServiceRef| self.services.get(name).is_some_and(|service| service.has_ingress(address));
        keys.extend(self.address_pending.iter().filter(serves).map(|service| self.key_of(service)));
        keys
    }

    /// How many addresses Services of other names in the namespace of `service` have
    /// kept, or are to keep, before those of `claims`: all of them, as long as none of
    /// these is to be kept; then those of Services that are gone, and by name, so that
    /// of too many all choose the same.
    pub(super) fn kept_before(&self, service: &ServiceRef, claims: &[Claim]) -> usize {
        let asks = self
            .services
            .get(service)
            .is_some_and(|service| service.annotations.contains_key(names::KEEP_ADDRESS_ANNOTATION));
        // All claims are looked through: only for those that it is about.
        let keeps = claims.iter().any(|claim| claim.keep);
        if !asks && !keeps {
            return 0;
        }
        let rank = |service: &ServiceRef| (self.services.contains_key(service), service.clone());
        let own = rank(service);
        let kept = self.allocator.claims().filter(|claim| claim.keep);
        let others =
            kept.map(|claim| &claim.owner.service).filter(|other| other.namespace == service.namespace);
        others.filter(|other| *other != service && (!keeps || rank(other) < own)).count()
    }

    /// Whether a namespace is gone, as far as that is seen.
    pub(super) fn is_namespace_gone(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_some_and(|namespaces| !namespaces.contains(namespace))
    }

    /// There is such a namespace, or it is gone.
    pub fn set_namespace(&mut self, name: &str, exists: bool) -> Vec<Key> {
        if let Some(namespaces) = &mut self.namespaces {
            let is_news = if exists { namespaces.insert(name.to_owned()) } else { namespaces.remove(name) };
            if is_news && !exists {
                return self.kept_in(|namespace| namespace == name);
            }
        }
        Vec::new()
    }

    /// These are all namespaces.
    pub fn set_namespaces(&mut self, names: BTreeSet<String>) -> Vec<Key> {
        let gone = self.kept_in(|namespace| !names.contains(namespace));
        self.namespaces = Some(names);
        gone
    }

    /// The keys of the kept claims in some namespaces.
    fn kept_in(&self, is_among: impl Fn(&str) -> bool) -> Vec<Key> {
        let kept = self.allocator.claims().filter(|claim| claim.keep);
        let kept = kept.map(|claim| &claim.owner.service).filter(|service| is_among(&service.namespace));
        kept.map(|service| self.key_of(service)).collect()
    }

    /// There is an IP object that is no claim.
    pub fn set_no_claim(&mut self, name: &str, uid: &str) {
        // One that was a claim stays what it was.
        if !self.port_claims.knows(name, uid) {
            self.allocator.set_stranger(name, uid);
        }
    }

    /// An IP object is gone, whatever it was.
    pub fn claim_gone(&mut self, name: &str, uid: &str) -> Vec<Key> {
        if let Some(claim) = self.port_claims.remove(name, uid) {
            return self.port_claims_gone(&[claim]);
        }
        match self.allocator.remove(name, uid) {
            Some(claim) => self.claims_gone(&[claim]),
            None if self.allocator.remove_stranger(name, uid) => self.waiting_keys().collect(),
            None => Vec::new(),
        }
    }

    /// The watch listed all IP objects anew.
    pub fn claims_listed(&mut self, names: &BTreeSet<String>) -> Vec<Key> {
        let gone = self.port_claims.retain(names);
        let mut keys = self.port_claims_gone(&gone);
        let gone = self.allocator.retain(names);
        keys.extend(self.claims_gone(&gone));
        if self.allocator.retain_strangers(names) && gone.is_empty() {
            keys.extend(self.waiting_keys());
        }
        keys
    }

    /// The watch shows that these claims are gone.
    fn claims_gone(&mut self, claims: &[Claim]) -> Vec<Key> {
        let mut keys = Vec::new();
        for claim in claims {
            keys.extend([self.key_of(&claim.owner.service), Key::Subnet(claim.subnet.clone())]);
            let settled = self.allocator.settle_overlaps(&claim.subnet);
            keys.extend(self.concerned_by_subnets(&settled));
        }
        if !claims.is_empty() {
            keys.extend(self.waiting_keys());
        }
        keys
    }

    /// A NetworkAttachmentDefinition is so; `None` if it is gone.
    pub fn set_attachment(&mut self, name: ObjectName, attachment: Option<Attachment>) -> Vec<Key> {
        let before = match &attachment {
            Some(attachment) => self.attachments.insert(name.clone(), attachment.clone()),
            None => self.attachments.remove(&name),
        };
        if before == attachment {
            return Vec::new();
        }
        let provider = Provider { namespace: name.0, name: name.1 };
        let subnets =
            self.allocator.set_l2_segment(&provider, attachment.and_then(|attachment| attachment.l2_segment));
        let claimed: BTreeSet<ServiceRef> = self
            .allocator
            .claims()
            .filter(|claim| claim.provider == provider)
            .map(|claim| claim.owner.service.clone())
            .collect();
        let provider = provider.to_string();
        let users = self
            .services
            .iter()
            .filter(|(_, service)| service.annotations.get(names::PROVIDER_ANNOTATION) == Some(&provider));
        let users = users.map(|(name, _)| self.key_of(name));
        // What cannot be read of a Service is taken from its claim.
        let owners = claimed.iter().map(|service| self.key_of(service));
        users.chain(owners).chain(self.concerned_by_subnets(&subnets)).collect()
    }

    /// A node is so; `None` if it is gone.
    pub fn set_node(&mut self, name: &str, node: Option<Node>) -> Vec<Key> {
        let (addresses, lost) = match &node {
            Some(node) => (node.addresses.clone(), Some(node.lost)),
            None => (Vec::new(), None),
        };
        let mut keys = self.set_serving_node(name, node);
        keys.extend(self.set_node_lost(name, lost));
        if self.allocator.set_node(name, addresses) {
            keys.extend(self.subnets.keys().map(|subnet| Key::Subnet(subnet.clone())));
            keys.extend(self.waiting_keys());
        }
        keys
    }

    /// The Subnets' names.
    pub fn known_subnets(&self) -> Vec<String> {
        self.subnets.keys().cloned().collect()
    }

    /// The attachments' names.
    pub fn known_attachments(&self) -> Vec<ObjectName> {
        self.attachments.keys().cloned().collect()
    }

    /// The nodes' names.
    pub fn known_nodes(&self) -> Vec<String> {
        self.nodes.names()
    }
}
