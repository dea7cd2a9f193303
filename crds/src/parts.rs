//! The parts of a configuration: what concerns one Service of it.
//!
//! A gateway of several Services carries out one configuration. Each Service has a part
//! in it: its frontends and their addresses, with what is the same for all. A gateway
//! says of each Service the digest of the part in force, so that the change of one is
//! waited for by that one alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::names;

/// The digits of a part's digest.
pub const DIGEST_LEN: usize = 32;

/// Fields of a configuration that are in no part, beside those that it is divided by:
/// what a gateway has to know. One that does not, carries none of it out.
const ASIDE: [&str; 2] = ["version", "requires"];

/// What of a frontend tells its part.
#[derive(Deserialize)]
struct Frontend {
    service: String,
    addresses: Vec<IpAddr>,
}

/// What of an address tells the parts that have it.
#[derive(Deserialize)]
struct Address {
    address: IpAddr,
}

/// The digest of each Service's part of the configuration `text`, by Service
/// (`<namespace>/<name>`).
///
/// It is of the text as it was written, fields included that this build does not know:
/// controller and gateway may differ by a version.
///
/// # Errors
/// The text is no configuration.
pub fn digests(text: &str) -> serde_json::Result<BTreeMap<String, String>> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
    let mut list = |name: &str| -> serde_json::Result<Vec<&RawValue>> {
        fields.remove(name).map_or(Ok(Vec::new()), |list| serde_json::from_str(list.get()))
    };
    let (addresses, frontends) = (list("addresses")?, list("frontends")?);
    for field in ASIDE {
        fields.remove(field);
    }
    let common: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
    let common = common.join(",");

    let mut texts = BTreeMap::new();
    for text in addresses {
        let Address { address } = serde_json::from_str(text.get())?;
        texts.insert(address, text.get());
    }
    let mut parts: BTreeMap<String, (BTreeSet<IpAddr>, Vec<&str>)> = BTreeMap::new();
    for text in frontends {
        let Frontend { service, addresses } = serde_json::from_str(text.get())?;
        let (needed, frontends) = parts.entry(service).or_default();
        needed.extend(addresses);
        frontends.push(text.get());
    }
    let digest = |(service, (needed, frontends)): (String, (BTreeSet<IpAddr>, Vec<&str>))| {
        let addresses = needed.iter().filter_map(|address| texts.get(address).copied());
        let addresses = addresses.collect::<Vec<_>>().join(",");
        let part = format!("{{{common}}}[{addresses}][{}]", frontends.join(","));
        (service, names::digest(part.as_bytes())[..DIGEST_LEN].to_owned())
    };
    Ok(parts.into_iter().map(digest).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config() -> Value {
        let frontend = |service: &str, address: &str, port: u16| {
            json!({
                "service": service, "addresses": [address], "ports": [{ "protocol": "TCP", "port": port }],
                "target": { "kind": "clusterIp", "addresses": ["10.96.0.1"] },
            })
        };
        json!({
            "version": 1, "attachment": "kube-system/lan", "natBackend": "nftables",
            "addresses": [{ "address": "172.18.0.11" }, { "address": "172.18.0.12" }, { "address": "172.18.0.13" }],
            "frontends": [
                frontend("a/web", "172.18.0.11", 80), frontend("a/api", "172.18.0.12", 80),
                frontend("a/web", "172.18.0.12", 443),
            ],
        })
    }

    /// The Services whose parts another value at this place changes.
    fn changed(pointer: &str, value: Value) -> Vec<String> {
        let before = digests(&config().to_string()).unwrap();
        let mut config = config();
        match config.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => config[pointer.trim_start_matches('/')] = value,
        }
        let after = digests(&config.to_string()).unwrap();
        let changed = after.into_iter().filter(|(service, digest)| before.get(service) != Some(digest));
        changed.map(|(service, _)| service).collect()
    }

    #[test]
    fn change_is_of_the_parts_of_those_whom_it_concerns() {
        assert_eq!(digests(&config().to_string()).unwrap().len(), 2);
        assert_eq!(changed("/frontends/1/ports/0/port", json!(81)), ["a/api"]);
        assert_eq!(changed("/frontends/2/ports/0/port", json!(81)), ["a/web"]);
        assert_eq!(changed("/frontends/0/target", json!({ "kind": "later" })), ["a/web"]);
        // An address is of all that are served on it.
        assert_eq!(changed("/addresses/0", json!({ "address": "172.18.0.11", "probe": true })), ["a/web"]);
        let both = changed("/addresses/1", json!({ "address": "172.18.0.12", "probe": true }));
        assert_eq!(both, ["a/api", "a/web"]);
        assert_eq!(changed("/addresses/2", json!({ "address": "172.18.0.13", "probe": true })), [""; 0]);
    }

    #[test]
    fn change_for_all_is_of_every_part_but_for_what_a_gateway_has_to_know() {
        for (field, value) in [("/natBackend", json!("iptables")), ("/later", json!(true))] {
            assert_eq!(changed(field, value), ["a/api", "a/web"], "{field}");
        }
        // The first that has a feature's frontend would unsettle the others.
        for (field, value) in [("/version", json!(5)), ("/requires", json!(["x"]))] {
            assert_eq!(changed(field, value), [""; 0], "{field}");
        }
    }

    #[test]
    fn part_is_of_the_text_as_it_was_written() {
        let text = |more: &str| {
            format!(
                r#"{{"addresses":[{{"address":"172.18.0.11"}}],"frontends":[{{"service":"a/b","addresses":["172.18.0.11"]{more}}}]}}"#
            )
        };
        let digest = |more: &str| digests(&text(more)).unwrap()["a/b"].clone();
        assert_ne!(digest(""), digest(r#","later":1"#), "a field of a later release counts");
        assert_ne!(digest(r#","later":1"#), digest(r#","later":2"#));
        assert_eq!(digest("").len(), DIGEST_LEN);
        for text in ["", "[]", r#"{"frontends":[1]}"#, r#"{"addresses":[{}]}"#] {
            assert!(digests(text).is_err(), "{text}");
        }
        assert!(digests("{}").unwrap().is_empty());
    }
}
