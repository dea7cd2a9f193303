//! NetworkAttachmentDefinitions.

use kube::{CustomResource, ResourceExt};
use lb_svc_core::model::Attachment;
use lb_svc_crds::bounded::cut;
use lb_svc_crds::names;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest name of a plugin, an interface or a resource that is kept.
const NAME_MAX: usize = 320;

/// Multus's kind, as far as it concerns us.
#[derive(CustomResource, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    namespaced,
    schema = "disabled"
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// The CNI configuration, JSON.
    #[serde(default)]
    pub config: String,
}

/// An attachment. An empty configuration is right: Multus looks for one on the
/// node then.
pub fn attachment(object: &NetworkAttachmentDefinition) -> Attachment {
    let (config, fault) = match serde_json::from_str::<Value>(&object.spec.config) {
        Ok(config) => (config, None),
        Err(_) if object.spec.config.is_empty() => (Value::Null, None),
        Err(error) => (Value::Null, Some(cut(&format!("its spec.config is not JSON: {error}"), NAME_MAX))),
    };
    Attachment {
        l2_segment: l2_segment(&config),
        resource: object.annotations().get(names::RESOURCE_NAME_ANNOTATION).map(|name| cut(name, NAME_MAX)),
        shared: plugin(&config)["type"] == "ipvlan",
        digest: names::digest(config.to_string().as_bytes()),
        fault,
    }
}

/// The plugin that makes the interface: the first of several.
fn plugin(config: &Value) -> &Value {
    config["plugins"].get(0).unwrap_or(config)
}

/// CNI type, interface and VLAN, where the configuration names them.
fn l2_segment(config: &Value) -> Option<String> {
    let plugin = plugin(config);
    let (kind, master) = (plugin["type"].as_str()?, plugin["master"].as_str()?);
    let vlan = ["vlan", "vlanId"].iter().find_map(|key| plugin[key].as_u64()).unwrap_or(0);
    let [kind, master] = [kind, master].map(|name| cut(name, NAME_MAX));
    Some(format!("{kind} on {master}, VLAN {vlan}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b32_ipvlan_is_told_from_macvlan() {
        let shared = |config: &str| {
            let spec = NetworkAttachmentDefinitionSpec { config: config.to_owned() };
            attachment(&NetworkAttachmentDefinition::new("lan", spec)).shared
        };
        assert!(shared(r#"{"type": "ipvlan", "master": "eth0"}"#));
        assert!(shared(r#"{"plugins": [{"type": "ipvlan"}, {"type": "tuning"}]}"#));
        assert!(!shared(r#"{"plugins": [{"type": "macvlan"}]}"#) && !shared("") && !shared("[1]"));
    }

    #[test]
    fn attachment_digest_ignores_formatting() {
        let of = |config: &str| {
            let spec = NetworkAttachmentDefinitionSpec { config: config.to_owned() };
            attachment(&NetworkAttachmentDefinition::new("lan", spec))
        };
        let one = of(r#"{"type": "macvlan", "master": "eth0"}"#);
        assert_eq!(of(r#"{ "master":"eth0", "type":"macvlan" }"#), one);
        assert_eq!(one.l2_segment.as_deref(), Some("macvlan on eth0, VLAN 0"));
        assert_ne!(of(r#"{"type": "macvlan", "master": "eth1"}"#).digest, one.digest);
        assert!(!one.shared);
        assert!(of("{").fault.is_some());
        assert_eq!(of("").fault, None, "it is on the node then");
    }
}
