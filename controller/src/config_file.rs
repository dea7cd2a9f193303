//! The controller's configuration file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lb_svc_core::gateway::pod_settings::{Configuration, check_quantity};
use lb_svc_core::model::Setting;
use lb_svc_core::node_mode::ports::NodePermissions;
use lb_svc_crds::names;
use serde::{Deserialize, Serialize};

use crate::strict_yaml;

/// The file's form.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    gateway: Fields,
    service_may_set: Option<BTreeSet<Setting>>,
    service_limits: Limits,
    fill_address: Option<bool>,
    addresses_per_namespace: Option<usize>,
    kept_addresses_per_namespace: Option<usize>,
    node_mode: NodeMode,
}

/// Which Services may use node addresses.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct NodeMode {
    namespaces: BTreeSet<String>,
    ports: String,
    reserved_ports: String,
}

/// The most that a Service may set for its own gateway.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Limits {
    replicas: Option<u64>,
    cpu: Option<Quantity>,
    memory: Option<Quantity>,
}

/// One field for each [`Setting`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Fields {
    image: Option<String>,
    image_pull_secrets: Option<Vec<LocalObjectReference>>,
    resources: Option<ResourceRequirements>,
    node_selector: Option<BTreeMap<String, String>>,
    tolerations: Option<Vec<Toleration>>,
    affinity: Option<Affinity>,
    priority_class_name: Option<String>,
    replicas: Option<u64>,
    drain_seconds: Option<u64>,
}

/// Reads the file, for gateways `apart` from their Services or beside them;
/// where it names no image, they run `image`.
///
/// # Errors
/// What is wrong with it, and where.
pub fn load(file: &Path, image: &str, apart: bool) -> anyhow::Result<Configuration> {
    let of_file = || format!("the configuration {}", file.display());
    let text = std::fs::read_to_string(file).with_context(of_file)?;
    parse(&text, image, apart).map_err(anyhow::Error::msg).with_context(of_file)
}

/// Reads the file's text, as [`load`] does.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(text: &str, image: &str, apart: bool) -> Result<Configuration, String> {
    let read: Option<File> = strict_yaml::read(text)?;
    let file = read.unwrap_or_default();
    let fields = serde_json::to_value(file.gateway).map_err(|error| error.to_string())?;
    let mut configuration = Configuration::new(image, apart);
    for setting in Setting::ALL {
        let value = &fields[setting.field()];
        if !value.is_null() {
            setting.check(value).map_err(|fault| format!("gateway.{}: {fault}", setting.field()))?;
            configuration.gateway.set(setting, value.clone());
        }
    }
    let services = &mut configuration.services;
    if let Some(settings) = file.service_may_set {
        services.settings = settings;
    }
    if let Some(replicas) = file.service_limits.replicas {
        let fault = |fault| format!("serviceLimits.replicas: {fault}");
        Setting::Replicas.check(&replicas.into()).map_err(fault)?;
        services.replicas = replicas;
    }
    for (resource, most, amount) in [
        ("cpu", &mut services.cpu, file.service_limits.cpu),
        ("memory", &mut services.memory, file.service_limits.memory),
    ] {
        if let Some(Quantity(amount)) = amount {
            check_quantity(&amount).map_err(|fault| format!("serviceLimits.{resource}: {fault}"))?;
            *most = amount;
        }
    }
    configuration.fill_address = file.fill_address.unwrap_or(configuration.fill_address);
    configuration.addresses_per_namespace = file.addresses_per_namespace;
    configuration.kept_addresses_per_namespace =
        file.kept_addresses_per_namespace.unwrap_or(configuration.kept_addresses_per_namespace);
    let NodeMode { namespaces, ports, reserved_ports } = file.node_mode;
    if let Some(wrong) = namespaces.iter().find(|name| !names::is_dns_label(name)) {
        return Err(format!("nodeMode.namespaces: {wrong:?} is no namespace"));
    }
    configuration.node_mode = NodePermissions {
        namespaces,
        ports: ports.parse().map_err(|fault| format!("nodeMode.ports: {fault}"))?,
        reserved: reserved_ports.parse().map_err(|fault| format!("nodeMode.reservedPorts: {fault}"))?,
    };
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use lb_svc_core::gateway::pod_settings::Settings;
    use serde_json::json;

    use super::*;
    use crate::api_server::read::pod_settings;

    #[test]
    fn image_needs_permission_of_the_configuration() {
        let annotations = [(names::IMAGE_ANNOTATION.to_owned(), "mine:1".to_owned())].into();
        let problem = Settings::of_service(&pod_settings(&annotations), &Configuration::default().services)
            .unwrap_err();
        assert_eq!(problem.reason, "SettingNotAllowed");
        assert!(problem.message.contains(names::IMAGE_ANNOTATION), "{}", problem.message);
        let open = parse("serviceMaySet: [image]", "gateway:1", false).unwrap().services;
        assert!(Settings::of_service(&pod_settings(&annotations), &open).is_ok());
    }

    #[test]
    fn configuration_with_unknown_field_is_refused() {
        let parse = |text: &str| super::parse(text, "gateway:1", false);
        for empty in ["", "# nothing yet\n", "gateway: {}", "serviceLimits: {}"] {
            assert_eq!(parse(empty).unwrap(), Configuration::new("gateway:1", false), "{empty}");
        }
        let some = parse("gateway: {image: other:2, nodeSelector: {a: b}}\nserviceMaySet: []").unwrap();
        assert_eq!(some.gateway.to_value(), json!({ "image": "other:2", "nodeSelector": { "a": "b" } }));
        assert!(some.services.settings.is_empty());
        let bounds = parse("{addressesPerNamespace: 20, keptAddressesPerNamespace: 0}").unwrap();
        assert_eq!((bounds.addresses_per_namespace, bounds.kept_addresses_per_namespace), (Some(20), 0));
        let limits = parse("serviceLimits: {replicas: 2, cpu: 0.5, memory: 64Mi}").unwrap().services;
        assert_eq!((limits.replicas, &*limits.cpu, &*limits.memory), (2, "0.5", "64Mi"));
        assert_eq!(
            (some.gateway.replicas(), parse("gateway: {replicas: 3}").unwrap().gateway.replicas()),
            (1, 3)
        );
        let nodes = parse("nodeMode: {namespaces: [a, b], ports: '80,8000-8999', reservedPorts: 8443}");
        let nodes = nodes.unwrap().node_mode;
        assert_eq!(nodes.namespaces.len(), 2);
        assert!(nodes.ports.contains(8500) && !nodes.ports.contains(443) && nodes.reserved.contains(8443));
        for (text, place) in [
            ("nodeMode: {namespaces: ['*']}", "nodeMode.namespaces"),
            ("nodeMode: {ports: all}", "nodeMode.ports"),
            ("nodeMode: {reservedPorts: '9-1'}", "nodeMode.reservedPorts"),
            ("nodeMode: {pools: []}", "pools"),
            ("gateways: {}", "gateways"),
            ("gateway: {images: x}", "images"),
            ("gateway: {tolerations: [{kei: a}]}", "gateway.tolerations.0.kei"),
            ("gateway: {resources: {limits: {memory: 1Zi}}}", "gateway.resources: limits.memory"),
            ("gateway: {image: ''}", "gateway.image"),
            ("gateway: {replicas: 9}", "gateway.replicas"),
            ("serviceMaySet: [everything]", "everything"),
            ("serviceLimits: {replicas: 0}", "serviceLimits.replicas"),
            ("serviceLimits: {cpu: much}", "serviceLimits.cpu"),
            ("serviceLimits: {disk: 1Gi}", "disk"),
            ("gateway:\n  nodeSelector: [a]", "line 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn setting_of_service_replaces_that_for_all() {
        let all = parse("gateway: {nodeSelector: {a: b}}", "gateway:1", false).unwrap().gateway;
        let own = Settings::from_iter([(Setting::NodeSelector, json!({ "c": "d" }))]);
        assert_eq!(own.or(&all).to_value(), json!({ "image": "gateway:1", "nodeSelector": { "c": "d" } }));
    }
}
