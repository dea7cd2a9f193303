//! The cache of claims: what makes one exclusive is its object's name in the API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ClaimId;
use crate::model::{ServiceId, ServiceRef};

/// A Service's hold on something, as an IP object has it.
pub trait Holding: PartialEq {
    /// The object.
    fn id(&self) -> &ClaimId;
    /// The Service, by uid.
    fn owner(&self) -> &ServiceId;
}

/// Claims of one kind as last seen, by name.
#[derive(Debug)]
pub struct Known<C> {
    claims: BTreeMap<String, Entry<C>>,
    by_service: HashMap<ServiceRef, BTreeSet<String>>,
}

#[derive(Debug)]
struct Entry<C> {
    claim: C,
    /// Whether the watch has shown it, or only our own write.
    confirmed: bool,
}

impl<C> Default for Known<C> {
    fn default() -> Self {
        Self { claims: BTreeMap::new(), by_service: HashMap::new() }
    }
}

impl<C: Holding> Known<C> {
    /// Whether there is this very claim; if the watch shows it, it is confirmed by that.
    pub fn has(&mut self, claim: &C, confirmed: bool) -> bool {
        let Some(known) = self.claims.get_mut(&claim.id().name) else { return false };
        known.confirmed |= confirmed;
        known.claim == *claim
    }

    /// Adds a claim whose name no other has.
    pub fn insert(&mut self, claim: C, confirmed: bool) {
        let name = claim.id().name.clone();
        self.by_service.entry(claim.owner().service.clone()).or_default().insert(name.clone());
        self.claims.insert(name, Entry { claim, confirmed });
    }

    /// The claim of this name.
    pub fn get(&self, name: &str) -> Option<&C> {
        self.claims.get(name).map(|entry| &entry.claim)
    }

    /// Whether there is a claim of this name and uid.
    pub fn knows(&self, name: &str, uid: &str) -> bool {
        self.get(name).is_some_and(|claim| claim.id().uid == uid)
    }

    /// Removes the claim of this name.
    pub fn remove(&mut self, name: &str) -> Option<C> {
        let claim = self.claims.remove(name)?.claim;
        let service = &claim.owner().service;
        if let Some(names) = self.by_service.get_mut(service) {
            names.remove(name);
            if names.is_empty() {
                self.by_service.remove(service);
            }
        }
        Some(claim)
    }

    /// Those that are gone if the watch listed these, but for our own that it cannot
    /// have seen yet.
    pub fn unlisted(&self, listed: &BTreeSet<String>) -> Vec<String> {
        let is_gone = |(name, entry): &(&String, &Entry<C>)| entry.confirmed && !listed.contains(*name);
        self.claims.iter().filter(is_gone).map(|(name, _)| name.clone()).collect()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &C> {
        self.claims.values().map(|entry| &entry.claim)
    }

    /// Those of every Service that has or had this name.
    pub fn of(&self, service: &ServiceRef) -> impl Iterator<Item = &C> {
        self.by_service.get(service).into_iter().flatten().filter_map(|name| self.get(name))
    }

    /// The Services that hold some, and how many.
    pub fn holders(&self) -> impl Iterator<Item = (&ServiceRef, usize)> {
        self.by_service.iter().map(|(service, names)| (service, names.len()))
    }
}
