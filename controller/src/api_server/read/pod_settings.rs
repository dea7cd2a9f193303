//! Gateway pod settings in a Service's annotations.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use lb_svc_core::model::Setting;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::strict_yaml;

/// The longest annotation that is read. What users write is far shorter, and
/// reading costs time.
const ANNOTATION_MAX: usize = 16 * 1024;

/// The settings that `annotations` hold; an error says what is wrong with the
/// annotation's value.
pub fn pod_settings(annotations: &BTreeMap<String, String>) -> BTreeMap<Setting, Result<Value, String>> {
    let set = |setting: Setting| Some((setting, parse(setting, annotations.get(setting.annotation())?)));
    Setting::ALL.into_iter().filter_map(set).collect()
}

/// The value of a setting, read from an annotation: YAML or JSON of the Kubernetes
/// type, or just the text where that is a string.
fn parse(setting: Setting, text: &str) -> Result<Value, String> {
    fn value<T: DeserializeOwned + Serialize>(text: &str) -> Result<Value, String> {
        serde_json::to_value(strict_yaml::read::<T>(text)?).map_err(|error| error.to_string())
    }
    if text.len() > ANNOTATION_MAX {
        return Err(format!("it is longer than {ANNOTATION_MAX} bytes"));
    }
    let value = match setting {
        Setting::Image | Setting::PriorityClassName => Value::from(text.trim()),
        Setting::ImagePullSecrets => value::<Vec<LocalObjectReference>>(text)?,
        Setting::Resources => value::<ResourceRequirements>(text)?,
        Setting::NodeSelector => value::<BTreeMap<String, String>>(text)?,
        Setting::Tolerations => value::<Vec<Toleration>>(text)?,
        Setting::Affinity => value::<Affinity>(text)?,
        // What is no number is none that is allowed.
        Setting::Replicas => Value::from(text.trim().parse().unwrap_or(0_u64)),
        Setting::DrainSeconds => text.trim().parse().map_or(Value::Null, |seconds: u64| Value::from(seconds)),
    };
    setting.check(&value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use lb_svc_core::gateway::pod_settings::{ServicePermissions, Settings};
    use lb_svc_core::model::Problem;
    use serde_json::json;

    use super::*;

    fn of_service(setting: Setting, text: &str) -> Result<Settings, Problem> {
        let annotations = [(setting.annotation().to_owned(), text.to_owned())].into();
        let all = ServicePermissions { settings: Setting::ALL.into(), ..ServicePermissions::new(false) };
        Settings::of_service(&pod_settings(&annotations), &all)
    }

    #[test]
    fn pod_setting_is_json_yaml_or_plain_text() {
        for (setting, text, expected) in [
            (
                Setting::Resources,
                "{limits: {cpu: 1, memory: 64Mi}}",
                json!({ "limits": { "cpu": "1", "memory": "64Mi" } }),
            ),
            (Setting::NodeSelector, r#"{"disk": "ssd", "zone": "1"}"#, json!({ "disk": "ssd", "zone": "1" })),
            (
                Setting::Tolerations,
                "- key: lan\n  operator: Exists\n  tolerationSeconds: 5",
                json!([{ "key": "lan", "operator": "Exists", "tolerationSeconds": 5 }]),
            ),
            (Setting::ImagePullSecrets, "[{name: mirror}]", json!([{ "name": "mirror" }])),
            (Setting::PriorityClassName, "high", json!("high")),
            (Setting::Image, "mirror:5000/gateway:1", json!("mirror:5000/gateway:1")),
            (Setting::Replicas, "2", json!(2)),
            (Setting::DrainSeconds, "0", json!(0)),
        ] {
            let settings = of_service(setting, text).unwrap();
            assert_eq!(settings.get(setting), Some(&expected));
            assert_eq!(settings.to_value(), json!({ setting.field(): expected }));
        }
    }

    #[test]
    fn invalid_pod_setting_says_where() {
        for (setting, text, place) in [
            (Setting::Resources, "{limits: {memory: 64Miz}}", "limits.memory"),
            (Setting::Resources, "{limit: {memory: 64Mi}}", "limit"),
            (Setting::Tolerations, "[{key: a}, {kei: b}]", "1.kei"),
            (Setting::Tolerations, "[{key: a}]\n---\n[]", "document"),
            (Setting::Tolerations, "{key: a}", "line 1"),
            (Setting::Affinity, "{nodeAffinity: {preferred: []}}", "nodeAffinity.preferred"),
            (Setting::NodeSelector, "{disk: ssd", "line 1"),
            (Setting::Image, " ", "no name"),
            (Setting::Replicas, "0", "from 1 to 8"),
            (Setting::Replicas, "9", "from 1 to 8"),
            (Setting::Replicas, "two", "from 1 to 8"),
            (Setting::DrainSeconds, "301", "from 0 to 300"),
            (Setting::DrainSeconds, "-1", "from 0 to 300"),
            (Setting::DrainSeconds, "30s", "from 0 to 300"),
            (Setting::NodeSelector, "{a: &x b, c: *x}", "alias"),
        ] {
            let problem = of_service(setting, text).unwrap_err();
            assert_eq!(problem.reason, "InvalidSetting");
            let message = problem.message;
            assert!(message.contains(setting.annotation()) && message.contains(place), "{message}");
        }
        assert!(of_service(Setting::Affinity, &" ".repeat(ANNOTATION_MAX + 1)).is_err());
    }
}
