//! What gateways' pods are made with: settings for all gateways, from the
//! controller's configuration, and for one, from its Service's annotations.

use std::collections::{BTreeMap, BTreeSet};

use lb_svc_crds::gateway::{DRAIN_SECONDS, NatBackend};
use lb_svc_crds::reason::Reason;
use serde_json::{Map, Value};

use super::manifests::quantity;
use crate::model::{Problem, Setting};
use crate::node_mode::ports::NodePermissions;

/// How many addresses of a namespace may outlive their Services, where the
/// configuration does not say.
const KEPT_ADDRESSES: usize = 8;

/// The most pods a gateway has: that many hear one another in the election.
const REPLICAS_MAX: u64 = 8;

/// The longest drain: for so long a roll-out may wait for each pod, and `kubectl drain`.
const DRAIN_SECONDS_MAX: u64 = 300;

impl Setting {
    /// What is wrong with a value beside its type, as far as that can be told
    /// without the API server.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self, value: &Value) -> Result<(), String> {
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
                        check_quantity(amount.as_str().unwrap_or_default())
                            .map_err(|fault| format!("{kind}.{resource}: {fault}"))?;
                    }
                }
            }
            Self::Replicas => {
                if !(1..=REPLICAS_MAX).contains(&value.as_u64().unwrap_or_default()) {
                    return Err(format!("it is no number from 1 to {REPLICAS_MAX}"));
                }
            }
            Self::DrainSeconds => {
                if value.as_u64().is_none_or(|seconds| seconds > DRAIN_SECONDS_MAX) {
                    return Err(format!("it is no number from 0 to {DRAIN_SECONDS_MAX}"));
                }
            }
            Self::ImagePullSecrets | Self::NodeSelector | Self::Tolerations | Self::Affinity => {}
        }
        Ok(())
    }
}

/// What is wrong with a quantity of a resource.
///
/// # Errors
/// That it is none.
pub fn check_quantity(text: &str) -> Result<(), String> {
    let is_none = || format!("{text:?} is no quantity such as 100m or 64Mi");
    quantity::nanos(text).map(drop).ok_or_else(is_none)
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

    /// For how many seconds at most a pod that ends leads its connections on.
    pub fn drain_seconds(&self) -> u16 {
        let set = self.get(Setting::DrainSeconds).and_then(Value::as_u64);
        set.and_then(|seconds| seconds.try_into().ok()).unwrap_or(DRAIN_SECONDS)
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

    /// Sets a value.
    pub fn set(&mut self, setting: Setting, value: Value) {
        self.0.insert(setting, value);
    }

    /// What a Service sets for its own gateway, of what is read from its
    /// annotations.
    ///
    /// # Errors
    /// The first annotation that is wrong, and what is wrong with it.
    pub fn of_service(
        read: &BTreeMap<Setting, Result<Value, String>>,
        permissions: &ServicePermissions,
    ) -> Result<Self, Problem> {
        let mut settings = Self::default();
        for (&setting, value) in read {
            let name = setting.annotation();
            if !permissions.settings.contains(&setting) {
                let message = format!(
                    "annotation {name}: the controller's configuration does not let Services set it (serviceMaySet): remove it"
                );
                return Err(Problem::new(Reason::SettingNotAllowed, message));
            }
            let value = value.as_ref().map_err(|fault| {
                Problem::new(
                    Reason::InvalidSetting,
                    format!("annotation {name}: {fault}: correct or remove it"),
                )
            })?;
            permissions.check(setting, value).map_err(|fault| {
                Problem::new(Reason::SettingNotAllowed, format!("annotation {name}: {fault}"))
            })?;
            settings.set(setting, permissions.bounded(setting, value.clone()));
        }
        Ok(settings)
    }
}

/// What Services may set for their own gateways, and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePermissions {
    /// The settings.
    pub settings: BTreeSet<Setting>,
    /// How many pods a gateway may have.
    pub replicas: u64,
    /// How much CPU each of its pods may request or be limited to, as a
    /// quantity.
    pub cpu: String,
    /// The same of memory.
    pub memory: String,
}

impl ServicePermissions {
    /// What holds where the configuration does not say. Quotas, limits and
    /// scheduling restrictions of a Service's namespace do not cover a gateway
    /// `apart` from it: nothing may be set there.
    pub fn new(apart: bool) -> Self {
        let settings = if apart { BTreeSet::new() } else { Setting::FOR_SERVICES.into() };
        Self { settings, replicas: REPLICAS_MAX, cpu: "1".to_owned(), memory: "512Mi".to_owned() }
    }

    /// Whether a Service may set this value.
    ///
    /// # Errors
    /// What it may not, and what to do.
    fn check(&self, setting: Setting, value: &Value) -> Result<(), String> {
        match setting {
            Setting::Replicas if value.as_u64().is_none_or(|replicas| replicas > self.replicas) => {
                Err(format!(
                    "the controller's configuration allows Services {} pods (serviceLimits.replicas): ask for fewer",
                    self.replicas
                ))
            }
            Setting::Resources => self.check_resources(value),
            // Pods that are kept from a gateway's nodes may be anybody's: the
            // scheduler takes anti-affinity both ways.
            Setting::Affinity => {
                match value.as_object().into_iter().flatten().find(|(kind, _)| *kind != "nodeAffinity") {
                    Some((kind, _)) => Err(format!(
                        "Services may set nodeAffinity only, {kind} concerns the pods of others: remove it"
                    )),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The value with what bounds it: a Service that sets resources replaces the
    /// default, which has a limit of memory.
    fn bounded(&self, setting: Setting, mut value: Value) -> Value {
        if setting == Setting::Resources && value["limits"]["memory"].is_null() {
            value["limits"]["memory"] = self.memory.clone().into();
        }
        value
    }

    fn check_resources(&self, value: &Value) -> Result<(), String> {
        for (kind, amounts) in value.as_object().into_iter().flatten() {
            let Some(amounts) =
                amounts.as_object().filter(|_| ["limits", "requests"].contains(&kind.as_str()))
            else {
                return Err(format!("Services may set limits and requests, not {kind}: remove it"));
            };
            for (resource, amount) in amounts {
                let most = match resource.as_str() {
                    "cpu" => &self.cpu,
                    "memory" => &self.memory,
                    _ => {
                        return Err(format!(
                            "{kind}.{resource}: Services may set cpu and memory only: remove it"
                        ));
                    }
                };
                let nanos = |text: &str| quantity::nanos(text).unwrap_or(i128::MAX);
                if nanos(amount.as_str().unwrap_or_default()) > quantity::nanos(most).unwrap_or_default() {
                    return Err(format!(
                        "{kind}.{resource}: the controller's configuration allows Services {most} (serviceLimits.{resource}): ask for less"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The controller's configuration, from its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// For all gateways. The image is always among them.
    pub gateway: Settings,
    /// What a Service may set for its own gateway instead.
    pub services: ServicePermissions,
    /// Whether addresses are filled into `spec.loadBalancerIP` where a Service
    /// does not say.
    pub fill_address: bool,
    /// How many addresses the Services of a namespace may have, kept ones among
    /// them; any number if `None`.
    pub addresses_per_namespace: Option<usize>,
    /// How many of them may outlive their Services.
    pub kept_addresses_per_namespace: usize,
    /// Which Services may use node addresses.
    pub node_mode: NodePermissions,
    /// What programs the NAT where a Service does not say; not of the file.
    pub nat_backend: NatBackend,
}

impl Configuration {
    /// Without a file: gateways run `image`, `apart` from their Services or
    /// beside them.
    pub fn new(image: &str, apart: bool) -> Self {
        Self {
            gateway: Settings::from_iter([(Setting::Image, Value::from(image))]),
            services: ServicePermissions::new(apart),
            fill_address: true,
            addresses_per_namespace: None,
            kept_addresses_per_namespace: KEPT_ADDRESSES,
            node_mode: NodePermissions::default(),
            nat_backend: NatBackend::default(),
        }
    }
}

impl Default for Configuration {
    fn default() -> Self {
        Self::new("localhost/lb-svc-gateway:dev", false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a Service is answered that sets this, where all may be set.
    fn set(setting: Setting, value: Value, most: &ServicePermissions) -> Result<Settings, Problem> {
        Settings::of_service(&[(setting, Ok(value))].into(), most)
    }

    #[test]
    fn r4_by_default_a_service_reaches_no_node_and_no_pod_of_others() {
        let most = ServicePermissions::new(false);
        let tolerations = set(Setting::Tolerations, json!([{ "operator": "Exists" }]), &most).unwrap_err();
        assert_eq!(tolerations.reason, "SettingNotAllowed");
        assert!(set(Setting::NodeSelector, json!({ "a": "b" }), &most).is_ok());
        assert!(set(Setting::Replicas, json!(8), &most).is_ok());
        for setting in Setting::ALL {
            assert!(set(setting, json!("x"), &ServicePermissions::new(true)).is_err(), "{setting:?} apart");
        }
    }

    #[test]
    fn r4_settings_of_a_service_have_a_limit_even_where_all_are_allowed() {
        let most = ServicePermissions {
            settings: Setting::ALL.into(),
            replicas: 2,
            cpu: "500m".into(),
            memory: "64Mi".into(),
        };
        let anti = json!({ "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{ "namespaceSelector": {}, "topologyKey": "zone" }],
        } });
        for (setting, value, part) in [
            (Setting::Affinity, anti, "podAntiAffinity"),
            (Setting::Affinity, json!({ "podAffinity": {} }), "podAffinity"),
            (Setting::Replicas, json!(3), "serviceLimits.replicas"),
            (Setting::Resources, json!({ "requests": { "cpu": "60" } }), "requests.cpu"),
            (Setting::Resources, json!({ "requests": { "cpu": "501m" } }), "serviceLimits.cpu"),
            (Setting::Resources, json!({ "limits": { "memory": "65Mi" } }), "serviceLimits.memory"),
            (Setting::Resources, json!({ "requests": { "nvidia.com/gpu": "1" } }), "nvidia.com/gpu"),
            (Setting::Resources, json!({ "requests": { "ephemeral-storage": "1Gi" } }), "ephemeral-storage"),
            (Setting::Resources, json!({ "claims": [{ "name": "gpu" }] }), "claims"),
        ] {
            let problem = set(setting, value, &most).unwrap_err();
            assert_eq!(problem.reason, "SettingNotAllowed");
            assert!(problem.message.contains(part), "{part}: {}", problem.message);
        }
        for (setting, value) in [
            (Setting::Affinity, json!({ "nodeAffinity": {} })),
            (Setting::Replicas, json!(2)),
            (Setting::Resources, json!({ "requests": { "cpu": "0.5" }, "limits": { "memory": "65536Ki" } })),
        ] {
            assert!(set(setting, value.clone(), &most).is_ok(), "{value}");
        }
    }
}
