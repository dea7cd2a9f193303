//! The user documentation has every word that operators meet: the reasons of
//! conditions and Events, the metrics, and the annotations of a Service. No
//! link of the documentation is broken.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lb_svc_controller::api_server::read::START_FAILURES;
use lb_svc_controller::telemetry::metrics::Metrics;
use lb_svc_core::model::Setting;
use lb_svc_core::observed::PushAnswer;
use lb_svc_core::service::health_check;
use lb_svc_core::service::spec::ANNOTATIONS;
use lb_svc_core::service::unheeded::{TABLE, Unheeded};
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A page of the user documentation.
fn page(name: &str) -> String {
    std::fs::read_to_string(repository().join("docs/user").join(name)).unwrap()
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

/// The headings of a page, as written.
fn headings(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let is_heading = |line: &&str| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    };
    text.lines().filter(is_heading).map(|line| line.trim_start_matches('#').trim()).collect()
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// All Markdown files of a directory and of those below it.
fn markdown(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_reason_has_a_section() {
    let troubleshooting = page("troubleshooting.md");
    let known: BTreeSet<&str> = headings(&troubleshooting).into_iter().collect();
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert!(reasons.len() > 50, "{reasons:?}");
    // A gateway's faults are literals.
    let gateway = program(&repository().join("gateway/src"));
    let faults: BTreeSet<&str> = literals(&gateway).into_iter().filter(|word| is_reason(word)).collect();
    assert!(faults.is_subset(&reasons), "not in lb_svc_crds::reason: {:?}", faults.difference(&reasons));
    let all = reasons.into_iter().chain(START_FAILURES);
    let missing: Vec<&str> = all.filter(|reason| !known.contains(reason)).collect();
    assert!(missing.is_empty(), "docs/user/troubleshooting.md has no section for {missing:?}");
}

/// The names of all metrics, as the code registers them: without the ending
/// that says what a counter or a unit is.
fn registered_metrics() -> Vec<String> {
    let mut registry = Registry::default();
    let metrics = Metrics::default();
    // A family without members does not show.
    metrics.run(None);
    metrics.pass(Reason::Served);
    metrics.push(PushAnswer::Taken);
    metrics.register(&mut registry, &Arc::default());
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let mut named: Vec<String> = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .filter(|name| name.starts_with("lb_svc_controller_"))
        .collect();
    assert!(named.len() >= 5, "{text}");
    // The gateway's are each registered by a literal.
    let gateway = std::fs::read_to_string(repository().join("gateway/src/telemetry/metrics.rs")).unwrap();
    let registered = gateway.split("r.register").skip(1).filter_map(|call| call.split('"').nth(1));
    named.extend(registered.map(|name| format!("lb_svc_gateway_{name}")));
    assert!(named.len() > 15, "{named:?}");
    named
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("lb_svc_controller_") || word.starts_with("lb_svc_gateway_"))
        .collect()
}

#[test]
fn every_metric_is_documented() {
    let monitoring = page("monitoring.md");
    let named = registered_metrics();
    let missing: Vec<&String> = named.iter().filter(|name| !monitoring.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/user/monitoring.md does not say what {missing:?} are");
    let exists = |name: &str| {
        let endings = ["", "_total", "_info", "_seconds"];
        named.iter().any(|known| name.strip_prefix(known.as_str()).is_some_and(|end| endings.contains(&end)))
    };
    let gone: Vec<&str> = metrics_in(&monitoring).into_iter().filter(|name| !exists(name)).collect();
    assert!(gone.is_empty(), "docs/user/monitoring.md names {gone:?}, which there are not");
}

#[test]
fn every_metric_of_rules_and_dashboard_is_documented() {
    let monitoring = page("monitoring.md");
    let documented = metrics_in(&monitoring);
    for name in ["rules.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(repository().join("charts/lb-svc/files").join(name)).unwrap();
        let used = metrics_in(&text);
        assert!(used.len() > 10, "{name}: {used:?}");
        let unknown: Vec<&&str> = used.difference(&documented).collect();
        assert!(unknown.is_empty(), "{name} uses {unknown:?}, which docs/user/monitoring.md does not have");
    }
}

#[test]
fn every_alert_is_documented() {
    let monitoring = page("monitoring.md");
    let rules = std::fs::read_to_string(repository().join("charts/lb-svc/files/rules.yaml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 8, "{alerts:?}");
    for alert in alerts {
        assert!(
            monitoring.contains(&format!("\n| `{alert}` |")),
            "docs/user/monitoring.md has no row for {alert}"
        );
    }
}

#[test]
fn every_annotation_of_a_service_has_an_example() {
    let services = page("services.md");
    let settings = Setting::ALL.map(Setting::annotation);
    let others = [
        names::PROVIDER_ANNOTATION,
        "lb-svc-attachment.kube-system.kubernetes.io/logical_switch",
        names::CCE_PASS_THROUGH_ANNOTATION,
        names::TKE_DIRECT_ACCESS_ANNOTATION,
    ];
    let others = ANNOTATIONS.into_iter().chain(health_check::ANNOTATIONS).chain(others);
    for name in settings.into_iter().chain(others) {
        let example = format!("\n    {name}: ");
        assert!(services.contains(&example), "docs/user/services.md has no example of {name}");
    }
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let root = repository().canonicalize().unwrap();
    let mut pages =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root.join(name)).to_vec();
    markdown(&root.join("docs"), &mut pages);
    let texts: BTreeMap<PathBuf, String> =
        pages.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
    let mut checked = 0;
    for (path, text) in &texts {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            let broken = || format!("{}: {link}", path.display());
            let target = target.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", broken()));
            assert!(
                section.is_empty()
                    || headings(&texts[&target]).into_iter().any(|heading| anchor(heading) == section),
                "{}",
                broken()
            );
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn every_name_that_is_not_heeded_is_documented() {
    let services = page("services.md");
    let lines: BTreeSet<&str> = services.lines().collect();
    for Unheeded { name, advice, limits_clients } in TABLE {
        let shown = match name.ends_with(['/', '-', '.']) {
            true => format!("{name}…"),
            false => (*name).to_owned(),
        };
        let what = if *limits_clients { "not served" } else { "said" };
        let line = format!("| `{shown}` | {what} | {advice} |");
        assert!(lines.contains(line.as_str()), "docs/user/services.md lacks: {line}");
    }
}
