//! Each screen is what its golden file has, and the user documentation shows the
//! same. `GOLDEN=write` writes the files anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use kubectl_lb_svc::cluster::Cluster;
use kubectl_lb_svc::finding::{LIMITS_OF_STATE, OWN_REASONS};
use kubectl_lb_svc::screen::Screen;
use kubectl_lb_svc::view::View;
use kubectl_lb_svc::{documents, render, screens};
use serde_json::Value;

/// Each command line of a golden file, and the file's name.
const COMMANDS: [(&str, &str); 10] = [
    ("status", "status"),
    ("services -A", "services"),
    ("services -A --problems", "problems"),
    ("subnets", "subnets"),
    ("gateways -A", "gateways"),
    ("trace shop/web", "trace-web"),
    ("trace ops/db", "trace-db"),
    ("trace ops/odd", "trace-odd"),
    ("drain n1 --dry-run", "drain"),
    ("check -f objects.yaml", "check"),
];

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn now() -> Timestamp {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

fn cluster() -> Cluster {
    documents::read(&[golden("cluster.yaml")], "default", now()).unwrap()
}

fn screen(name: &str) -> Screen {
    let cluster = cluster();
    let view = View::of(&cluster);
    let trace =
        |namespace: &str, name: &str| screens::trace(&view, cluster.services.get(namespace, name).unwrap());
    match name {
        "status" => screens::status(&view, None),
        "services" => screens::services(&view, None, false),
        "problems" => screens::services(&view, None, true),
        "subnets" => screens::subnets(&view),
        "gateways" => screens::gateways(&view, None),
        "trace-web" => trace("shop", "web"),
        "trace-db" => trace("ops", "db"),
        "trace-odd" => trace("ops", "odd"),
        "drain" => screens::drain(&view, None, "n1"),
        "check" => screens::check(documents::read(&[golden("objects.yaml")], "default", now()).unwrap()),
        other => panic!("{other}"),
    }
}

/// Compares with the golden file, or writes it.
fn compare(file: &str, text: &str) {
    let path = golden(file);
    if std::env::var("GOLDEN").as_deref() == Ok("write") {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{file}; if that is as it should be, write it anew: GOLDEN=write");
}

#[test]
fn screen_is_as_its_golden_file() {
    for (_, name) in COMMANDS {
        compare(&format!("{name}.txt"), &render::text(&screen(name), false));
    }
}

#[test]
fn json_of_a_screen_is_as_its_golden_file() {
    for name in ["status", "trace-odd"] {
        let json = render::json(&screen(name));
        compare(&format!("{name}.json"), &json);
        assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
    }
}

#[test]
fn trouble_decides_the_exit_code_of_commands_that_judge() {
    let fails = |name: &str| screen(name).fails();
    assert!(["status", "problems", "trace-db", "trace-odd", "drain", "check"].into_iter().all(fails));
    assert!(!["services", "subnets", "gateways", "trace-web"].into_iter().any(fails));
}

#[test]
fn trace_has_what_is_wrong_first() {
    let text = fs::read_to_string(golden("trace-db.txt")).unwrap();
    assert!(text.starts_with("Trouble:\n  service: SpecNotSeen: "), "{text}");
}

#[test]
fn user_documentation_shows_each_screen() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/user/kubectl-plugin.md");
    let page = fs::read_to_string(path).unwrap();
    for (command, name) in COMMANDS {
        let text = fs::read_to_string(golden(&format!("{name}.txt"))).unwrap();
        let shown: String = text
            .lines()
            .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") })
            .collect();
        let example = format!("    $ kubectl lb-svc {command}\n{shown}");
        assert!(page.contains(&example), "docs/user/kubectl-plugin.md does not have:\n{example}");
    }
    let reasons = OWN_REASONS.into_iter().chain(LIMITS_OF_STATE.iter().map(|reason| reason.as_str()));
    for reason in reasons {
        assert!(page.contains(reason), "docs/user/kubectl-plugin.md does not have {reason}");
    }
}

/// The program's exit code, and what it says on standard output and error.
fn program(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-lb_svc")).args(args).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), out, err)
}

#[test]
fn program_ends_with_the_exit_code_of_what_it_found() {
    let objects = golden("objects.yaml");
    let (code, out, err) = program(&["check", "-f", objects.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (Some(1), ""));
    assert_eq!(
        out,
        fs::read_to_string(golden("check.txt")).unwrap(),
        "no colours where there is no terminal"
    );
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/examples");
    let example = |name: &str| examples.join(name).to_str().unwrap().to_owned();
    let (attachment, subnet, service) =
        (example("attachment.yaml"), example("subnet.yaml"), example("service.yaml"));
    let (code, out, _) = program(&["check", "-f", &attachment, "-f", &subnet, "-f", &service, "-o", "json"]);
    let screen: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &screen["services"][0]["address"]), (Some(0), &"172.18.0.18".into()), "{out}");
}

#[test]
fn program_fails_with_two_and_says_why() {
    let kubeconfig = std::env::temp_dir().join(format!("kubectl-lb-svc-{}.yaml", std::process::id()));
    // Nobody listens at the discard port.
    let config = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: c, user: {}}], contexts: [{name: c, context: {cluster: c, user: c}}]}";
    fs::write(&kubeconfig, config).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    for (args, why) in [
        (&["status", "--kubeconfig", kubeconfig][..], "error: Services cannot be listed"),
        (&["status", "--kubeconfig", kubeconfig, "--context", "other"], "error: "),
        (&["status", "--kubeconfig", "/nowhere"], "error: the kubeconfig /nowhere"),
        (&["trace", "a/b/c", "--kubeconfig", kubeconfig], "is neither NAME nor NAMESPACE/NAME"),
        (&["drain", "n1"], "add --dry-run"),
        (&["check", "-f", "/nowhere"], "error: /nowhere: "),
        (&["check", "-f", "/dev/zero"], "error: /dev/zero: the files have more than 16 MiB"),
        (&["check"], "--filename"),
        (&["unknown"], "unknown"),
    ] {
        let (code, out, err) = program(args);
        assert!(code == Some(2) && out.is_empty() && err.contains(why), "{args:?}: {code:?} {err}");
    }
    fs::remove_file(kubeconfig).unwrap();
}

#[test]
fn krew_manifest_is_of_this_version() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("krew.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&manifest).unwrap();
    assert_eq!(manifest["spec"]["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    assert!(!platforms.is_empty() && platforms.iter().all(|platform| platform["bin"] == "kubectl-lb_svc"));
}

#[test]
fn check_of_a_live_cluster_keeps_each_claim() {
    let screen = screens::check(cluster());
    let table = screen.tables.iter().find(|table| table.name == "services").unwrap();
    let address = |name: &str| {
        let row = table.rows.iter().find(|row| row[1].text == name).unwrap();
        row[2].text.clone()
    };
    assert_eq!(["web", "mail", "db"].map(address), ["172.18.0.2", "172.18.0.3", "172.18.0.4"]);
    assert_eq!(address("new"), "172.18.0.5", "the lowest that is free");
    assert!(screen.unseen.iter().any(|line| line.contains("as if it were new")), "{:?}", screen.unseen);
}
