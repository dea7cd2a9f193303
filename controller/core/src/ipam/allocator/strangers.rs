//! IP objects that are no claims: each keeps one of its name from being made.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use lb_svc_crds::names::Provider;

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Strangers(HashMap<String, Stranger>);

#[derive(Debug)]
struct Stranger {
    uid: String,
    /// What it keeps from being claimed, once that has been tried: its name need
    /// not say so.
    address: Option<(Provider, IpAddr)>,
}

impl Strangers {
    /// There is one of this name and uid.
    pub fn set(&mut self, name: &str, uid: &str) {
        let address = self.0.remove(name).and_then(|known| known.address);
        self.0.insert(name.to_owned(), Stranger { uid: uid.to_owned(), address });
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether there is one of this name and uid.
    pub fn is(&self, name: &str, uid: &str) -> bool {
        self.0.get(name).is_some_and(|known| known.uid == uid)
    }

    /// It keeps this address from being claimed.
    pub fn keep(&mut self, name: &str, provider: Provider, address: IpAddr) {
        if let Some(stranger) = self.0.get_mut(name) {
            stranger.address = Some((provider, address));
        }
    }

    /// Whether it keeps an address from being claimed.
    pub fn keeps(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|stranger| stranger.address.is_some())
    }

    /// The addresses that are kept from being claimed.
    pub fn addresses(&self) -> impl Iterator<Item = (&Provider, IpAddr)> {
        let addresses = self.0.values().filter_map(|stranger| stranger.address.as_ref());
        addresses.map(|(provider, address)| (provider, *address))
    }

    /// Removes one. `None` if it is not known; else the address that it kept, if it did.
    pub fn remove(&mut self, name: &str) -> Option<Option<(Provider, IpAddr)>> {
        self.0.remove(name).map(|stranger| stranger.address)
    }

    /// Those that are not among the `listed`.
    pub fn missing(&self, listed: &BTreeSet<String>) -> Vec<String> {
        self.0.keys().filter(|name| !listed.contains(*name)).cloned().collect()
    }
}
