//! docs/operations.md knows every word that operators meet: the reasons of
//! conditions and Events, and the metrics.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lb_svc_controller::telemetry::metrics::Metrics;
use lb_svc_core::model::Setting;
use lb_svc_core::service::health_check;
use lb_svc_core::service::spec::ANNOTATIONS;
use lb_svc_crds::names;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// What has the form of a reason and is Kubernetes' own: read, or part of what
/// is written, but never told.
const NOT_TOLD: [&str; 15] = [
    "ClientIP",
    "ConfigMap",
    "ContainerCreating",
    "ContainersReady",
    "FailedScheduling",
    "IfNotPresent",
    "LoadBalancer",
    "NetworkAttachmentDefinition",
    "NewReplicaSetAvailable",
    "NoExecute",
    "PodInitializing",
    "PodScheduled",
    "ReplicaFailure",
    "RollingUpdate",
    "RuntimeDefault",
];
/// Reasons that do not show by their form.
const OF_ONE_WORD: [&str; 8] =
    ["Deleting", "Invalid", "Ready", "Replacing", "Served", "Unanswered", "Unhealthy", "Valid"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn operations() -> String {
    std::fs::read_to_string(repository().join("docs/operations.md")).unwrap()
}

/// The program's text without its tests, of all files below `directory`.
fn program(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &program(&path);
        } else {
            let file = std::fs::read_to_string(path).unwrap();
            text += file.split("#[cfg(test)]").next().unwrap();
        }
    }
    text
}

/// What stands between two quotation marks and consists of letters.
fn literals(text: &str) -> BTreeSet<&str> {
    let plain = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic());
    text.split('"').filter(plain).collect()
}

fn is_reason(word: &str) -> bool {
    let humps = word
        .as_bytes()
        .windows(2)
        .filter(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
    word.starts_with(|c: char| c.is_ascii_uppercase()) && humps.count() > 0
}

#[test]
fn every_reason_is_documented() {
    let operations = operations();
    let known: BTreeSet<&str> = operations.split(|c: char| !c.is_ascii_alphabetic()).collect();
    let text: String = ["controller/src", "controller/core/src", "gateway/src"]
        .map(|dir| program(&repository().join(dir)))
        .concat();
    let reasons: Vec<&str> = literals(&text)
        .into_iter()
        .filter(|word| is_reason(word) && !NOT_TOLD.contains(word))
        .chain(OF_ONE_WORD)
        .collect();
    assert!(reasons.len() > 50, "{reasons:?}");
    let missing: Vec<&str> = reasons.into_iter().filter(|reason| !known.contains(reason)).collect();
    assert!(missing.is_empty(), "docs/operations.md does not say what to do about {missing:?}");
}

#[test]
fn every_metric_is_documented() {
    let operations = operations();
    let mut registry = Registry::default();
    let metrics = Metrics::default();
    // A family without members does not show.
    metrics.run(None);
    metrics.pass("Served");
    metrics.register(&mut registry, &Arc::default());
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let mut named: Vec<String> = text
        .lines()
        .filter_map(|line| {
            Some(line.strip_prefix("# TYPE lb_svc_controller_")?.split(' ').next()?.to_owned())
        })
        .collect();
    assert!(named.len() >= 5, "{text}");
    // The gateway's are each registered by a literal.
    let gateway = std::fs::read_to_string(repository().join("gateway/src/metrics.rs")).unwrap();
    let registered = gateway.split("r.register").skip(1).filter_map(|call| call.split('"').nth(1));
    named.extend(registered.map(str::to_owned));
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<&String> =
        named.iter().filter(|name| !operations.contains(&format!("_{name}"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not say what {missing:?} are");
}

#[test]
fn every_annotation_of_a_service_is_documented() {
    let operations = operations();
    let settings = Setting::ALL.map(Setting::annotation);
    let others = [names::CCE_PASS_THROUGH_ANNOTATION, names::TKE_DIRECT_ACCESS_ANNOTATION];
    let others = ANNOTATIONS.into_iter().chain(health_check::ANNOTATIONS).chain(others);
    for name in settings.into_iter().chain(others) {
        let (_, short) = name.split_once('/').unwrap();
        assert!(operations.contains(name) || operations.contains(&format!("| `{short}` |")), "{name}");
    }
}
