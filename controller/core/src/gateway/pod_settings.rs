//! What gateways' pods are made with: settings for all gateways, from the
//! controller's configuration, and for one, from its Service's annotations.

use std::collections::{BTreeMap, BTreeSet};

use lb_svc_crds::gateway::NatBackend;
use lb_svc_crds::reason::Reason;
use serde_json::{Map, Value};

use super::manifests::quantity;
use crate::model::{Problem, Setting};

/// The most pods a gateway has: that many hear one another in the election.
const REPLICAS_MAX: u64 = 8;

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

    /// Sets a value.
    pub fn set(&mut self, setting: Setting, value: Value) {
        self.0.insert(setting, value);
    }

    /// What a Service sets for its own gateway, of what is read from its
    /// annotations; `allowed` is what it may.
    ///
    /// # Errors
    /// The first annotation that is wrong, and what is wrong with it.
    pub fn of_service(
        read: &BTreeMap<Setting, Result<Value, String>>,
        allowed: &BTreeSet<Setting>,
    ) -> Result<Self, Problem> {
        let mut settings = Self::default();
        for (&setting, value) in read {
            let name = setting.annotation();
            if !allowed.contains(&setting) {
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
            settings.set(setting, value.clone());
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
    /// Whether addresses are filled into `spec.loadBalancerIP` where a Service
    /// does not say.
    pub fill_address: bool,
    /// What programs the NAT where a Service does not say; not of the file.
    pub nat_backend: NatBackend,
}

impl Configuration {
    /// Without a file: gateways run `image`.
    pub fn new(image: &str) -> Self {
        Self {
            gateway: Settings::from_iter([(Setting::Image, Value::from(image))]),
            service_may_set: Setting::FOR_SERVICES.into(),
            fill_address: true,
            nat_backend: NatBackend::default(),
        }
    }
}

impl Default for Configuration {
    fn default() -> Self {
        Self::new("localhost/lb-svc-gateway:dev")
    }
}
