//! The controller's configuration file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use lb_svc_core::gateway::pod_settings::Configuration;
use lb_svc_core::model::Setting;
use serde::{Deserialize, Serialize};

use crate::strict_yaml;

/// The file's form.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    gateway: Fields,
    service_may_set: Option<BTreeSet<Setting>>,
    fill_address: Option<bool>,
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
}

/// Reads the file; where it names no image, gateways run `image`.
///
/// # Errors
/// What is wrong with it, and where.
pub fn load(file: &Path, image: &str) -> anyhow::Result<Configuration> {
    let of_file = || format!("the configuration {}", file.display());
    let text = std::fs::read_to_string(file).with_context(of_file)?;
    parse(&text, image).map_err(anyhow::Error::msg).with_context(of_file)
}

fn parse(text: &str, image: &str) -> Result<Configuration, String> {
    let read: Option<File> = strict_yaml::read(text)?;
    let File { gateway, service_may_set, fill_address } = read.unwrap_or_default();
    let fields = serde_json::to_value(gateway).map_err(|error| error.to_string())?;
    let mut configuration = Configuration::new(image);
    for setting in Setting::ALL {
        let value = &fields[setting.field()];
        if !value.is_null() {
            setting.check(value).map_err(|fault| format!("gateway.{}: {fault}", setting.field()))?;
            configuration.gateway.set(setting, value.clone());
        }
    }
    configuration.service_may_set = service_may_set.unwrap_or(configuration.service_may_set);
    configuration.fill_address = fill_address.unwrap_or(configuration.fill_address);
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use lb_svc_core::gateway::pod_settings::Settings;
    use lb_svc_crds::names;
    use serde_json::json;

    use super::*;
    use crate::api_server::read::pod_settings;

    #[test]
    fn image_needs_permission_of_the_configuration() {
        let annotations = [(names::IMAGE_ANNOTATION.to_owned(), "mine:1".to_owned())].into();
        let problem =
            Settings::of_service(&pod_settings(&annotations), &Configuration::default().service_may_set)
                .unwrap_err();
        assert_eq!(problem.reason, "SettingNotAllowed");
        assert!(problem.message.contains(names::IMAGE_ANNOTATION), "{}", problem.message);
        let open = parse("serviceMaySet: [image]", "gateway:1").unwrap().service_may_set;
        assert!(Settings::of_service(&pod_settings(&annotations), &open).is_ok());
    }

    #[test]
    fn configuration_with_unknown_field_is_refused() {
        let parse = |text: &str| super::parse(text, "gateway:1");
        for empty in ["", "# nothing yet\n", "gateway: {}"] {
            assert_eq!(parse(empty).unwrap(), Configuration::new("gateway:1"), "{empty}");
        }
        let some = parse("gateway: {image: other:2, nodeSelector: {a: b}}\nserviceMaySet: []").unwrap();
        assert_eq!(some.gateway.to_value(), json!({ "image": "other:2", "nodeSelector": { "a": "b" } }));
        assert!(some.service_may_set.is_empty());
        assert_eq!(
            (some.gateway.replicas(), parse("gateway: {replicas: 3}").unwrap().gateway.replicas()),
            (1, 3)
        );
        for (text, place) in [
            ("gateways: {}", "gateways"),
            ("gateway: {images: x}", "images"),
            ("gateway: {tolerations: [{kei: a}]}", "gateway.tolerations.0.kei"),
            ("gateway: {resources: {limits: {memory: 1Zi}}}", "gateway.resources: limits.memory"),
            ("gateway: {image: ''}", "gateway.image"),
            ("gateway: {replicas: 9}", "gateway.replicas"),
            ("serviceMaySet: [everything]", "everything"),
            ("gateway:\n  nodeSelector: [a]", "line 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn setting_of_service_replaces_that_for_all() {
        let all = parse("gateway: {nodeSelector: {a: b}}", "gateway:1").unwrap().gateway;
        let own = Settings::from_iter([(Setting::NodeSelector, json!({ "c": "d" }))]);
        assert_eq!(own.or(&all).to_value(), json!({ "image": "gateway:1", "nodeSelector": { "c": "d" } }));
    }
}
