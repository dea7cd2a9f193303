//! Controller and gateway may differ by a version: what they say to each other
//! is read by both.
//!
//! The files in `golden` are what releases said. They stay: a field that comes
//! later goes into a file of its own, and today's code reads all of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;

use lb_svc_crds::gateway::{CONFIG_VERSION, CONFIG_VERSIONS, GatewayConfig, GatewayStatus, Role};
use lb_svc_crds::names;
use lb_svc_crds::seal::{PrivateKey, Seal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const CONFIGS: [&str; 5] = [
    include_str!("golden/config-1.json"),
    include_str!("golden/config-1-least.json"),
    include_str!("golden/config-5.json"),
    include_str!("golden/config-7.json"),
    include_str!("golden/config-7-proxy.json"),
];
const STATUSES: [&str; 4] = [
    include_str!("golden/status.json"),
    include_str!("golden/status-2.json"),
    include_str!("golden/status-3.json"),
    include_str!("golden/status-4.json"),
];

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

/// The text is read, and written again word for word.
fn is_said_so<T: DeserializeOwned + Serialize>(text: &str) {
    let again = serde_json::to_string_pretty(&read::<T>(text)).unwrap();
    assert_eq!(again.trim(), text.trim());
}

/// The same with a field in every object that nobody knows yet.
fn with_more(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, with_more(value)));
            let later = ("later".to_owned(), json!({ "than": ["this"] }));
            Value::Object(fields.chain([later]).collect())
        }
        Value::Array(items) => items.into_iter().map(with_more).collect(),
        other => other,
    }
}

fn reads_with_more<T: DeserializeOwned + PartialEq + Debug>(text: &str, maps: &[&str]) {
    let mut more = with_more(read(text));
    // What is no struct has no fields to come.
    for map in maps {
        more[map].as_object_mut().unwrap().remove("later");
    }
    assert!(more.to_string().contains("later"));
    assert_eq!(read::<T>(&more.to_string()), read::<T>(text));
}

#[test]
fn documents_of_releases_are_written_and_read() {
    for config in CONFIGS {
        is_said_so::<GatewayConfig>(config);
    }
    for status in STATUSES {
        is_said_so::<GatewayStatus>(status);
    }
}

/// An old gateway under a new controller, and the other way round.
#[test]
fn unknown_field_is_ignored() {
    for config in CONFIGS {
        reads_with_more::<GatewayConfig>(config, &[]);
    }
    for status in STATUSES {
        let limits = status.contains("\"limits\"").then_some("limits");
        let parts = status.contains("\"parts\"").then_some("parts");
        let maps: Vec<&str> = ["conflicts", "faults"].into_iter().chain(limits).chain(parts).collect();
        reads_with_more::<GatewayStatus>(status, &maps);
    }
}

#[test]
fn missing_field_has_its_earlier_meaning() {
    let config: GatewayConfig = read(CONFIGS[1]);
    assert!(!config.addresses[0].probe, "earlier controllers had no address asked for");
    assert_eq!((config.addresses[0].gateway, config.election), (None, None));
    let status: GatewayStatus = read("{}");
    assert_eq!(status, GatewayStatus::default());
    let status: GatewayStatus = read(r#"{"election": {}}"#);
    assert_eq!(status.election.unwrap().role, Role::Joining, "it has no say yet");
}

/// What this build's controller writes, the gateway before it carries out: it
/// would refuse a version that it does not know.
#[test]
fn version_is_written_once_earlier_gateways_read_it() {
    assert!(CONFIG_VERSIONS.contains(&CONFIG_VERSION));
    assert!(CONFIG_VERSIONS.contains(&(CONFIG_VERSION + 1)), "nor is the next controller refused");
    for config in CONFIGS {
        let config = read::<GatewayConfig>(config);
        assert!(CONFIG_VERSIONS.contains(&config.version));
        assert_eq!(config.clone().with_requirements(), config, "what it needs is what it says");
    }
}

/// The seal is a file beside the configuration, and the header of a push, whose path and
/// port both sides have to name alike.
#[test]
fn seal_of_a_release_is_written_and_read() {
    let golden = include_str!("golden/seal.json").trim();
    assert!(golden.is_ascii() && !golden.contains('\n'), "a header holds no more");
    let key = PrivateKey::from_seed(&[1; 32]).unwrap();
    let config = CONFIGS[0].as_bytes();
    assert_eq!(key.sign(&Seal::of_config("6b1f3c52-0a43-4f0e-9d0b-3f1c2a9d8e77", 7, config)), golden);
    let seal = Seal::open(golden.as_bytes(), &[key.public()]).unwrap();
    assert_eq!(seal.verify(&seal.gateway, |_| Some(config.to_vec())), Ok(()));
    let header = format!("PUT {}:{} {}", names::GATEWAY_PORT, names::PUSH_PATH, names::SEAL_HEADER);
    assert_eq!(header, "PUT 9410:/config lb-svc-seal");
}
