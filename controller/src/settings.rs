//! What gateways' pods are made with: settings for all gateways, from the
//! controller's configuration, and for one, from its Service's annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use lb_svc_crds::gateway::NatBackend;
use lb_svc_crds::names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantity;
use crate::request::Problem;

/// The longest annotation that is read. What users write is far shorter, and
/// reading costs time.
const ANNOTATION_MAX: usize = 16 * 1024;
/// The most pods a gateway has: that many hear one another in the election.
const REPLICAS_MAX: u64 = 8;

/// Something about gateways' pods that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    /// The container's image.
    Image,
    /// What the image is pulled with.
    ImagePullSecrets,
    /// The container's resources.
    Resources,
    /// Which nodes it may run on.
    NodeSelector,
    /// Which taints it bears, beside those of every gateway.
    Tolerations,
    /// Which nodes it had better run on, and near what.
    Affinity,
    /// What it may preempt, and be preempted by.
    PriorityClassName,
    /// How many of them a gateway has.
    Replicas,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Image,
        Self::ImagePullSecrets,
        Self::Resources,
        Self::NodeSelector,
        Self::Tolerations,
        Self::Affinity,
        Self::PriorityClassName,
        Self::Replicas,
    ];

    /// What the author of a Service may set if the configuration does not say:
    /// nothing that would let who may create Services run code of their own
    /// with a gateway's rights, or have other pods evicted.
    const FOR_SERVICES: [Self; 5] =
        [Self::Resources, Self::NodeSelector, Self::Tolerations, Self::Affinity, Self::Replicas];

    /// Its field in the spec of a pod, a container or a Deployment; also its
    /// name in the configuration.
    pub fn field(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ImagePullSecrets => "imagePullSecrets",
            Self::Resources => "resources",
            Self::NodeSelector => "nodeSelector",
            Self::Tolerations => "tolerations",
            Self::Affinity => "affinity",
            Self::PriorityClassName => "priorityClassName",
            Self::Replicas => "replicas",
        }
    }

    /// The annotation by which a Service sets it.
    pub fn annotation(self) -> &'static str {
        match self {
            Self::Image => names::IMAGE_ANNOTATION,
            Self::ImagePullSecrets => names::IMAGE_PULL_SECRETS_ANNOTATION,
            Self::Resources => names::RESOURCES_ANNOTATION,
            Self::NodeSelector => names::NODE_SELECTOR_ANNOTATION,
            Self::Tolerations => names::TOLERATIONS_ANNOTATION,
            Self::Affinity => names::AFFINITY_ANNOTATION,
            Self::PriorityClassName => names::PRIORITY_CLASS_ANNOTATION,
            Self::Replicas => names::REPLICAS_ANNOTATION,
        }
    }

    /// Reads its value from an annotation: YAML or JSON of the Kubernetes
    /// type, or just the text where that is a string.
    fn read(self, text: &str) -> Result<Value, String> {
        fn value<T: DeserializeOwned + Serialize>(text: &str) -> Result<Value, String> {
            serde_json::to_value(strict::<T>(text)?).map_err(|error| error.to_string())
        }
        if text.len() > ANNOTATION_MAX {
            return Err(format!("it is longer than {ANNOTATION_MAX} bytes"));
        }
        let value = match self {
            Self::Image | Self::PriorityClassName => Value::from(text.trim()),
            Self::ImagePullSecrets => value::<Vec<LocalObjectReference>>(text)?,
            Self::Resources => value::<ResourceRequirements>(text)?,
            Self::NodeSelector => value::<BTreeMap<String, String>>(text)?,
            Self::Tolerations => value::<Vec<Toleration>>(text)?,
            Self::Affinity => value::<Affinity>(text)?,
            // What is no number is none that is allowed.
            Self::Replicas => Value::from(text.trim().parse().unwrap_or(0_u64)),
        };
        self.check(&value)?;
        Ok(value)
    }

    /// What is wrong with a value beside its type, as far as that can be told
    /// without the API server.
    fn check(self, value: &Value) -> Result<(), String> {
        match self {
            Self::Image | Self::PriorityClassName => {
                let text = value.as_str().unwrap_or_default();
                if text.is_empty() || text.contains(char::is_whitespace) {
                    return Err(format!("{text:?} is no name"));
                }
            }
            Self::Resources => {
                for kind in ["limits", "requests"] {
                    for (resource, amount) in value[kind].as_object().into_iter().flatten() {
                        let amount = amount.as_str().unwrap_or_default();
                        if quantity::nanos(amount).is_none() {
                            return Err(format!(
                                "{kind}.{resource}: {amount:?} is no quantity such as 100m or 64Mi"
                            ));
                        }
                    }
                }
            }
            Self::Replicas => {
                if !(1..=REPLICAS_MAX).contains(&value.as_u64().unwrap_or_default()) {
                    return Err(format!("it is no number from 1 to {REPLICAS_MAX}"));
                }
            }
            Self::ImagePullSecrets | Self::NodeSelector | Self::Tolerations | Self::Affinity => {}
        }
        Ok(())
    }
}

/// Reads YAML, and JSON with it; a field that the type does not have is an
/// error, which says where it is.
fn strict<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // Enough for whatever a person writes; aliases could make much of little.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_aliases: 0, max_documents: 1, max_nodes: 10_000 },
        with_snippet: false,
    };
    let mut unknown = Vec::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))
    });
    let value = read.map_err(|error| error.to_string())?;
    match unknown.first() {
        Some(path) => Err(format!("there is no field {}", path.replace(".?", ""))),
        None => Ok(value),
    }
}

/// Values of some settings, as the API writes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings(BTreeMap<Setting, Value>);

impl FromIterator<(Setting, Value)> for Settings {
    fn from_iter<T: IntoIterator<Item = (Setting, Value)>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

impl Settings {
    /// A value, if it is set.
    pub fn get(&self, setting: Setting) -> Option<&Value> {
        self.0.get(&setting)
    }

    /// How many pods a gateway has.
    pub fn replicas(&self) -> u64 {
        self.get(Setting::Replicas).and_then(Value::as_u64).unwrap_or(1)
    }

    /// These, and `others` where these say nothing.
    pub fn or(&self, others: &Self) -> Self {
        let mut all = others.0.clone();
        all.extend(self.0.clone());
        Self(all)
    }

    /// The same as JSON, by field.
    pub fn to_value(&self) -> Value {
        let fields = self.0.iter().map(|(setting, value)| (setting.field().to_owned(), value.clone()));
        Value::Object(fields.collect::<Map<_, _>>())
    }

    /// What a Service with these annotations sets for its own gateway;
    /// `allowed` is what it may.
    ///
    /// # Errors
    /// The first annotation that is wrong, and what is wrong with it.
    pub fn of_service(
        annotations: &BTreeMap<String, String>,
        allowed: &BTreeSet<Setting>,
    ) -> Result<Self, Problem> {
        let mut settings = Self::default();
        for setting in Setting::ALL {
            let name = setting.annotation();
            let Some(text) = annotations.get(name) else { continue };
            if !allowed.contains(&setting) {
                let message = format!(
                    "annotation {name}: the controller's configuration does not let Services set it (serviceMaySet): remove it"
                );
                return Err(Problem::new("SettingNotAllowed", message));
            }
            let value = setting.read(text).map_err(|fault| {
                Problem::new("InvalidSetting", format!("annotation {name}: {fault}: correct or remove it"))
            })?;
            settings.0.insert(setting, value);
        }
        Ok(settings)
    }
}

/// The controller's configuration, from its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// For all gateways. The image is always among them.
    pub gateway: Settings,
    /// What a Service may set for its own gateway instead.
    pub service_may_set: BTreeSet<Setting>,
    /// What programs the NAT where a Service does not say; not of the file.
    pub nat_backend: NatBackend,
}

/// The file's form.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    gateway: Fields,
    service_may_set: Option<BTreeSet<Setting>>,
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

impl Configuration {
    /// Without a file: gateways run `image`.
    pub fn new(image: &str) -> Self {
        Self {
            gateway: Settings::from_iter([(Setting::Image, Value::from(image))]),
            service_may_set: Setting::FOR_SERVICES.into(),
            nat_backend: NatBackend::default(),
        }
    }

    /// Reads the file; where it names no image, gateways run `image`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(file: &Path, image: &str) -> anyhow::Result<Self> {
        let of_file = || format!("the configuration {}", file.display());
        let text = std::fs::read_to_string(file).with_context(of_file)?;
        Self::parse(&text, image).map_err(anyhow::Error::msg).with_context(of_file)
    }

    fn parse(text: &str, image: &str) -> Result<Self, String> {
        let read: Option<File> = strict(text)?;
        let File { gateway, service_may_set } = read.unwrap_or_default();
        let fields = serde_json::to_value(gateway).map_err(|error| error.to_string())?;
        let mut configuration = Self::new(image);
        for setting in Setting::ALL {
            let value = &fields[setting.field()];
            if !value.is_null() {
                setting.check(value).map_err(|fault| format!("gateway.{}: {fault}", setting.field()))?;
                configuration.gateway.0.insert(setting, value.clone());
            }
        }
        configuration.service_may_set = service_may_set.unwrap_or(configuration.service_may_set);
        Ok(configuration)
    }
}

impl Default for Configuration {
    fn default() -> Self {
        Self::new("localhost/lb-svc-gateway:dev")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of_service(setting: Setting, text: &str) -> Result<Settings, Problem> {
        let annotations = [(setting.annotation().to_owned(), text.to_owned())].into();
        Settings::of_service(&annotations, &Setting::ALL.into())
    }

    #[test]
    fn a_value_may_be_json_yaml_or_plain_text() {
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
        ] {
            let settings = of_service(setting, text).unwrap();
            assert_eq!(settings.get(setting), Some(&expected));
            assert_eq!(settings.to_value(), json!({ setting.field(): expected }));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
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
            (Setting::NodeSelector, "{a: &x b, c: *x}", "alias"),
        ] {
            let problem = of_service(setting, text).unwrap_err();
            assert_eq!(problem.reason, "InvalidSetting");
            let message = problem.message;
            assert!(message.contains(setting.annotation()) && message.contains(place), "{message}");
        }
        assert!(of_service(Setting::Affinity, &" ".repeat(ANNOTATION_MAX + 1)).is_err());
    }

    #[test]
    fn a_service_may_not_choose_what_code_runs_unless_it_is_let() {
        let annotations = [(names::IMAGE_ANNOTATION.to_owned(), "mine:1".to_owned())].into();
        let problem =
            Settings::of_service(&annotations, &Configuration::default().service_may_set).unwrap_err();
        assert_eq!(problem.reason, "SettingNotAllowed");
        assert!(problem.message.contains(names::IMAGE_ANNOTATION), "{}", problem.message);
        let open = Configuration::parse("serviceMaySet: [image]", "gateway:1").unwrap().service_may_set;
        assert!(Settings::of_service(&annotations, &open).is_ok());
    }

    #[test]
    fn the_configuration_is_strict() {
        let parse = |text: &str| Configuration::parse(text, "gateway:1");
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
    fn a_services_own_setting_replaces_that_for_all() {
        let all = Configuration::parse("gateway: {nodeSelector: {a: b}}", "gateway:1").unwrap().gateway;
        let own = of_service(Setting::NodeSelector, "{c: d}").unwrap();
        assert_eq!(own.or(&all).to_value(), json!({ "image": "gateway:1", "nodeSelector": { "c": "d" } }));
    }
}
