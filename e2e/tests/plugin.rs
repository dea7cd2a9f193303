//! The kubectl plugin, as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Stdio;

use k8s_openapi::api::core::v1::Service;
use lb_svc_e2e::objects::{PROVIDER, web};
use lb_svc_e2e::{Lab, SLOW, expect, scene, until};
use serde_json::{Value, json};
use tokio::process::Command;

/// Runs the plugin that `LB_SVC_PLUGIN` names, in a namespace; its exit code, and what
/// it says as JSON.
async fn plugin(namespace: &str, args: &[&str]) -> (i32, Value) {
    let program = std::env::var_os("LB_SVC_PLUGIN").expect("LB_SVC_PLUGIN says where the plugin is");
    let kubeconfig = Lab::cluster(&["kubeconfig"]).await.unwrap();
    let mut command = Command::new(program);
    command.args(["--kubeconfig", kubeconfig.trim(), "-n", namespace, "-o", "json"]).args(args);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or_else(|| panic!("{args:?} was killed: {said}"));
    let screen = serde_json::from_slice(&output.stdout);
    (code, screen.unwrap_or_else(|error| panic!("{args:?} ended with {code}: {error}: {said}")))
}

/// The row of a table whose column has this value.
fn row<'a>(screen: &'a Value, table: &str, column: &str, value: &str) -> &'a Value {
    let rows = screen[table].as_array().unwrap_or_else(|| panic!("no {table}: {screen}"));
    rows.iter().find(|row| row[column] == value).unwrap_or_else(|| panic!("no {value}: {screen}"))
}

fn trouble(screen: &Value) -> Vec<&str> {
    screen["trouble"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn served_and_broken_service_are_told_apart() {
    scene("plugin", async |scene| {
        let ns = scene.namespace.as_str();
        let address = scene.served("web", 1).await.to_string();
        let mut broken = web("broken");
        let annotation = format!("{PROVIDER}.kubernetes.io/logical_switch");
        broken["metadata"]["annotations"][annotation] = json!("nowhere");
        scene.create::<Service>(broken).await;

        // A moment after the Service is served its claim has the pod's hardware address.
        let (code, services) = until("both are answered", SLOW, async || {
            let (code, screen) = plugin(ns, &["services"]).await;
            let is_answered = row(&screen, "services", "name", "broken")["reason"] == "SubnetNotFound";
            let is_served = row(&screen, "services", "name", "web")["state"] == "Served";
            expect(is_answered && is_served, &screen).map(|()| (code, screen))
        })
        .await;
        assert_eq!(code, 0, "a list judges nothing");
        let served = row(&services, "services", "name", "web");
        assert_eq!(served["address"], json!(address), "{services}");
        assert_eq!(row(&services, "services", "name", "broken")["state"], "NotServed");

        let (code, problems) = plugin(ns, &["services", "--problems"]).await;
        assert_eq!((code, problems["services"].as_array().unwrap().len()), (1, 1), "{problems}");
        let (code, status) = plugin(ns, &["status"]).await;
        let is_said =
            trouble(&status).iter().any(|line| line.contains(&format!("{ns}/broken: SubnetNotFound")));
        assert!(code == 1 && is_said, "{status}");
        assert_eq!(status["services"][0]["served"], 1, "{status}");
        assert_eq!(row(&status, "controller", "enabled", "True")["enabled"], "True");

        let pod = scene.gateway("web").await;
        let (code, gateways) = plugin(ns, &["gateways"]).await;
        let gateway = row(&gateways, "gateways", "service", "web");
        assert_eq!((code, &gateway["ready"]), (0, &json!("1/1")), "{gateways}");
        assert_eq!(gateway["active"], json!(pod.metadata.name), "{gateways}");

        let (code, trace) = plugin(ns, &["trace", "web"]).await;
        assert!(code == 0 && trouble(&trace).is_empty(), "{trace}");
        for step in ["claim", "configuration", "pods", "kernel", "announcement", "endpoints"] {
            assert_eq!(row(&trace, "steps", "step", step)["state"], "Ok", "{trace}");
        }
        let (code, trace) = plugin(ns, &["trace", "broken"]).await;
        assert!(code == 1 && trouble(&trace)[0].starts_with("claim: SubnetNotFound: "), "{trace}");

        let node = pod.spec.unwrap().node_name.unwrap();
        let (code, drain) = plugin(ns, &["drain", &node, "--dry-run"]).await;
        assert_eq!(
            (code, &row(&drain, "pods", "service", "web")["movesTo"]),
            (1, &json!("a new pod")),
            "{drain}"
        );
    })
    .await;
}
