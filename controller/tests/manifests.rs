//! The Helm chart: what it renders is what the manifests have, its schema is
//! the controller's, and its alerts fire when they are to. Takes helm,
//! kustomize and promtool in PATH: `make chart`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lb_svc_controller::config_file;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn file(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// What a program says, run at the root of the repository.
fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(repository()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}: make chart has it in PATH"))
}

/// What it prints, if it succeeds.
fn printed(program: &str, args: &[&str]) -> Result<String, String> {
    let output = run(program, args);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(said(&output.stdout)),
        false => Err(said(&output.stderr) + &said(&output.stdout)),
    }
}

/// The documents that the chart renders with these values.
fn rendered(values: &Value) -> Result<Vec<Value>, String> {
    // JSON takes any value as it is; the file is empty for the defaults.
    let path = std::env::temp_dir().join(format!(
        "lb-svc-chart-{}-{:?}.json",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, values.to_string()).unwrap();
    let values = path.to_str().unwrap();
    let args = ["template", "lb-svc", "charts/lb-svc", "--namespace", "lb-svc-system", "--values", values];
    let text = printed("helm", &args);
    std::fs::remove_file(&path).unwrap();
    Ok(documents(&text?))
}

/// The documents that kustomize makes of this folder.
fn kustomized(folder: &str) -> Vec<Value> {
    documents(&printed("kustomize", &["build", folder]).unwrap())
}

fn documents(text: &str) -> Vec<Value> {
    let mut all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    all.retain(|document| !document.is_null());
    all
}

/// Objects by kind, namespace and name, without Helm's own annotations.
fn by_name(objects: Vec<Value>) -> BTreeMap<[String; 3], Value> {
    let count = objects.len();
    let named = objects.into_iter().map(|mut object| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = object["metadata"].as_object_mut().unwrap();
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.retain(|name, _| !name.starts_with("helm.sh/"));
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        let metadata = &object["metadata"];
        ([text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"])], object)
    });
    let named: BTreeMap<_, _> = named.collect();
    assert_eq!(named.len(), count, "an object is there twice");
    named
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

fn all_monitoring() -> Value {
    json!({ "monitors": true, "rules": true, "dashboard": true })
}

/// A value other than the default for every field.
fn everything() -> Value {
    json!({
        "enabled": false,
        "images": { "controller": "registry.example.com/c:1", "gateway": "registry.example.com/g:1" },
        "imagePullSecrets": [{ "name": "registry" }],
        "replicas": 1,
        "resources": { "requests": { "cpu": 1 }, "limits": { "memory": "1Gi" } },
        "nodeSelector": { "example.com/node": "a" },
        "tolerations": [{ "key": "example.com/edge", "operator": "Exists", "effect": "NoSchedule" }],
        "natBackend": "nftables",
        "gateways": { "namespace": "apart", "moving": true },
        "config": configuration(),
        "crds": false,
        "networkPolicies": false,
        "monitoring": { "monitors": true, "rules": true, "dashboard": true, "labels": { "release": "prom" } },
    })
}

/// The configuration that the file of the manifests has as comments.
fn configuration() -> Value {
    let text = file("manifests/controller/config.yaml");
    let settings = text.lines().skip_while(|line| *line != "#").skip(1);
    yaml(&settings.map(|line| line.strip_prefix("# ").unwrap()).collect::<Vec<_>>().join("\n"))
}

#[test]
fn chart_renders_what_the_manifests_have() {
    let apart = json!({ "gateways": { "namespace": "lb-svc-gateways" } });
    for (values, folders) in [
        (json!({}), &["manifests/crds", "manifests"][..]),
        (apart, &["manifests/crds", "manifests/gateway-namespace"]),
        (json!({ "monitoring": all_monitoring() }), &["manifests/crds", "manifests", "manifests/monitoring"]),
    ] {
        let mut expected = by_name(folders.iter().flat_map(|folder| kustomized(folder)).collect());
        // A release is in a namespace that is there before it.
        let namespace = ["Namespace", "", "lb-svc-system"].map(str::to_owned);
        assert!(expected.remove(&namespace).is_some(), "{folders:?}");
        let rendered = by_name(rendered(&values).unwrap());
        assert!(rendered.keys().eq(expected.keys()), "{:?}\n{:?}", rendered.keys(), expected.keys());
        for (name, object) in &expected {
            assert_eq!(&rendered[name], object, "{name:?} of {values} (left) and {folders:?}");
        }
    }
}

#[test]
fn chart_passes_helms_linter() {
    for values in ["", "gateways.namespace=apart,monitoring.monitors=true,monitoring.rules=true"] {
        printed("helm", &["lint", "--strict", "--quiet", "charts/lb-svc", "--set", values]).unwrap();
    }
}

#[test]
fn versions_are_the_workspaces() {
    let chart = yaml(&file("charts/lb-svc/Chart.yaml"));
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field} of Chart.yaml");
    }
}

#[test]
fn each_value_is_heeded() {
    let objects = rendered(&everything()).unwrap();
    let deployment = find(&objects, "Deployment", "lb-svc-controller").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 1);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{ "name": "registry" }]));
    assert_eq!(pod["nodeSelector"], json!({ "example.com/node": "a" }));
    assert_eq!(pod["tolerations"].as_array().unwrap().len(), 3);
    assert_eq!(pod["tolerations"][2]["key"], "example.com/edge");
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example.com/c:1");
    assert_eq!(container["env"][0], json!({ "name": "GATEWAY_IMAGE", "value": "registry.example.com/g:1" }));
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(
        container["args"],
        json!([
            "--enable-lb-svc=false",
            "--config=/etc/lb-svc/config.yaml",
            "--nat-backend=nftables",
            "--gateway-namespace=apart"
        ])
    );
    let kinds: BTreeSet<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    assert!(!kinds.contains("CustomResourceDefinition") && !kinds.contains("NetworkPolicy"), "{kinds:?}");
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        let object = objects.iter().find(|object| object["kind"] == kind).unwrap();
        assert_eq!(object["metadata"]["labels"], json!({ "release": "prom" }), "{kind}");
    }
    let dashboard = find(&objects, "ConfigMap", "lb-svc-dashboard").unwrap();
    assert_eq!(dashboard["metadata"]["labels"], json!({ "grafana_dashboard": "1", "release": "prom" }));
    // While gateways move, both bindings are there.
    assert!(find(&objects, "RoleBinding", "lb-svc-gateways").is_some());
    assert!(find(&objects, "ClusterRoleBinding", "lb-svc-gateways").is_some());
}

/// What outlives the release: what holds addresses and gateways.
#[test]
fn what_gateways_need_is_kept_at_uninstall() {
    let objects = rendered(&json!({ "gateways": { "namespace": "apart" } })).unwrap();
    let kept = objects.iter().filter(|o| o["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep");
    let kept: Vec<&str> = kept.filter_map(|object| object["kind"].as_str()).collect();
    for kind in ["CustomResourceDefinition", "Namespace", "NetworkPolicy"] {
        assert!(kept.contains(&kind), "{kind} is not among {kept:?}");
    }
    assert_eq!(kept.len(), 4, "{kept:?}");
}

#[test]
fn gateways_in_the_controllers_namespace_are_refused() {
    let error = rendered(&json!({ "gateways": { "namespace": "lb-svc-system" } })).unwrap_err();
    assert!(error.contains("gateways need a namespace"), "{error}");
}

/// The fields of objects below `schema`, as paths; of those that the schema
/// lists.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{path} takes any field");
    for (name, schema) in properties {
        let path = format!("{path}.{name}");
        fields(schema, &path, found);
        found.insert(path);
    }
}

fn schema() -> Value {
    serde_json::from_str(&file("charts/lb-svc/values.schema.json")).unwrap()
}

#[test]
fn schema_has_the_values_and_no_other() {
    let mut listed = BTreeSet::new();
    fields(&schema(), "", &mut listed);
    let defaults = yaml(&file("charts/lb-svc/values.yaml"));
    let everything = everything();
    for path in listed.iter().filter(|path| *path != ".global") {
        let pointer = path.replace('.', "/");
        // Some fields of affinity are left to the API server.
        let known = everything.pointer(&pointer).is_some() || path.contains(".affinity.");
        assert!(known, "{path} of the schema is not tested");
        let is_setting = path.starts_with(".config.") || path.starts_with(".resources.");
        assert!(is_setting || defaults.pointer(&pointer).is_some(), "{path} has no default");
    }
    for (path, value) in
        [("/images/tag", json!("x")), ("/monitoring/rule", json!(true)), ("/config/gatway", json!({}))]
    {
        let mut values = everything.clone();
        let (parent, name) = path.rsplit_once('/').unwrap();
        values.pointer_mut(parent).unwrap()[name] = value;
        let error = rendered(&values).unwrap_err();
        assert!(error.contains(name), "{path}: {error}");
    }
    for (path, value) in
        [("/replicas", json!("2")), ("/natBackend", json!("ipvs")), ("/config/gateway/replicas", json!(9))]
    {
        let mut values = everything.clone();
        *values.pointer_mut(path).unwrap() = value;
        assert!(rendered(&values).is_err(), "{path}");
    }
}

#[test]
fn schema_of_the_configuration_is_the_controllers() {
    let file = std::env::temp_dir().join(format!("lb-svc-chart-config-{}", std::process::id()));
    let load = |text: &str| {
        std::fs::write(&file, text).unwrap();
        config_file::load(&file, "gateway:1", false).map_err(|error| format!("{error:#}"))
    };
    let schema = &schema()["properties"]["config"];
    for (nested, schema) in [
        ("nothing: 1", schema),
        ("gateway: {nothing: 1}", &schema["properties"]["gateway"]),
        ("serviceLimits: {nothing: 1}", &schema["properties"]["serviceLimits"]),
    ] {
        // The error names the fields that there are.
        let error = load(nested).unwrap_err();
        let known = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}")).1;
        let known = known.split(" at ").next().unwrap().split(", ").map(|field| field.trim_matches('`'));
        let known: BTreeSet<&str> = known.collect();
        let listed: BTreeSet<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(listed, known, "{error}");
    }
    // What the chart writes is what the controller reads.
    let objects = rendered(&json!({ "config": configuration() })).unwrap();
    let config = objects.iter().find(|object| object["data"]["config.yaml"].is_string()).unwrap();
    let loaded = load(config["data"]["config.yaml"].as_str().unwrap()).unwrap();
    assert_eq!((loaded.gateway.replicas(), loaded.addresses_per_namespace), (2, Some(100)));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn each_alert_fires_and_stays_quiet_as_tested() {
    let (rules, tests) = ("charts/lb-svc/files/rules.yaml", "manifests/monitoring/rules.test.yaml");
    printed("promtool", &["check", "rules", rules]).unwrap();
    printed("promtool", &["test", "rules", tests]).unwrap();
    let (rules, tests) = (yaml(&file(rules)), yaml(&file(tests)));
    let list = |value: &Value| value.as_array().unwrap().clone();
    let alerts = list(&rules["groups"]).into_iter().flat_map(|group| list(&group["rules"]));
    let cases: Vec<Value> =
        list(&tests["tests"]).into_iter().flat_map(|test| list(&test["alert_rule_test"])).collect();
    for alert in alerts {
        let of_it = || cases.iter().filter(|case| case["alertname"] == alert["alert"]);
        let fires = |case: &&Value| !list(&case["exp_alerts"]).is_empty();
        assert!(of_it().any(|case| fires(&case)), "no test fires {}", alert["alert"]);
        assert!(of_it().any(|case| !fires(&case)), "no test leaves {} quiet", alert["alert"]);
    }
}

#[test]
fn each_query_of_the_dashboard_is_understood() {
    let dashboard: Value = serde_json::from_str(&file("charts/lb-svc/files/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = queries.map(|target| target["expr"].as_str().unwrap());
    // Grafana's variables, as they might be.
    let queries = queries.map(|query| query.replace("$service", ".*").replace("$__rate_interval", "1m"));
    let rules: Vec<Value> = queries
        .enumerate()
        .map(|(n, query)| json!({ "record": format!("panel_{n}"), "expr": query }))
        .collect();
    assert!(rules.len() > 15, "{rules:?}");
    let path = std::env::temp_dir().join(format!("lb-svc-chart-queries-{}.yaml", std::process::id()));
    std::fs::write(&path, json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string()).unwrap();
    let checked = printed("promtool", &["check", "rules", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    checked.unwrap();
}
