#[cfg(feature = "kube")]
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
#[cfg(feature = "kube")]
use kube::{CustomResource, KubeSchema};
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::IgnoredFields;

/// A range of addresses on an attached network, from which Services get
/// theirs.
///
/// Field names are Kube-OVN's. What a user leaves out is computed, never
/// written back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(CustomResource, KubeSchema))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "kubeovn.io",
        version = "v1",
        kind = "Subnet",
        plural = "subnets",
        shortname = "subnet",
        doc = "A range of addresses on an attached network, from which LoadBalancer Services get theirs.",
        status = "SubnetStatus",
        derive = "PartialEq",
        printcolumn = r#"{"name":"Provider","type":"string","jsonPath":".spec.provider"}"#,
        printcolumn = r#"{"name":"Protocol","type":"string","jsonPath":".spec.protocol"}"#,
        printcolumn = r#"{"name":"CIDR","type":"string","jsonPath":".spec.cidrBlock"}"#,
        printcolumn = r#"{"name":"Gateway","type":"string","jsonPath":".spec.gateway","priority":1}"#,
        printcolumn = r#"{"name":"V4Used","type":"integer","jsonPath":".status.v4usingIPs"}"#,
        printcolumn = r#"{"name":"V4Available","type":"integer","jsonPath":".status.v4availableIPs"}"#,
        printcolumn = r#"{"name":"ExcludeIPs","type":"string","jsonPath":".spec.excludeIps"}"#,
        printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
        printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","priority":1}"#
    )
)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "kube", x_kube(
    validation = Rule::new("!has(self.gateway) || self.gateway == '' || self.gateway.split(',').all(g, isIP(g) && self.cidrBlock.split(',').exists(c, isCIDR(c) && cidr(c).containsIP(ip(g))))")
        .message("gateway must be an address inside cidrBlock").field_path(".gateway")
))]
pub struct SubnetSpec {
    /// The attachment, `<nad>.<namespace>`. Empty, `ovn` or `….ovn` means
    /// that the Subnet is Kube-OVN's: it is left alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 318)))]
    pub provider: String,

    /// The network, for example `172.18.0.0/16`; dual stack `<v4>,<v6>`.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 100)))]
    #[cfg_attr(feature = "kube", x_kube(validation = Rule::new("self.split(',').size() <= 2 && self.split(',').all(c, isCIDR(c))")
        .message("cidrBlock must be a CIDR such as 172.18.0.0/16 (dual stack: <v4>,<v6>)")))]
    pub cidr_block: String,

    /// The LAN's router; the first address of the CIDR if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 100)))]
    pub gateway: Option<String>,

    /// Addresses (`a`) and ranges (`a..b`) that are never handed out unasked.
    /// A Service may still name one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "exclude_ips"))]
    pub exclude_ips: Vec<String>,

    /// The address family; follows from `cidrBlock` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,

    /// The namespaces whose Services may have addresses from here; all if
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub namespaces: Vec<String>,

    /// Fields that have no effect, such as others of Kube-OVN's.
    #[serde(flatten)]
    #[cfg_attr(feature = "kube", schemars(skip))]
    pub ignored: IgnoredFields,
}

/// An address family, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Protocol {
    /// IPv4 only.
    IPv4,
    /// IPv6 only.
    IPv6,
    /// One CIDR of each.
    Dual,
}

/// What became of a Subnet.
#[cfg(feature = "kube")]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetStatus {
    /// How many IPv4 addresses are claimed.
    #[serde(default, rename = "v4usingIPs")]
    #[schemars(with = "i64", range(min = 0))]
    pub v4_using_ips: u64,
    /// How many IPv4 addresses a Service that names none could still get.
    #[serde(default, rename = "v4availableIPs")]
    #[schemars(with = "i64", range(min = 0))]
    pub v4_available_ips: u64,
    /// The IPv4 addresses claimed: `a-b,c`.
    #[serde(default, rename = "v4usingIPrange")]
    pub v4_using_ip_range: String,
    /// The IPv4 addresses that a Service that names none could still get:
    /// `a-b,c`.
    #[serde(default, rename = "v4availableIPrange")]
    pub v4_available_ip_range: String,
    /// `Validated`: the spec makes sense. `Ready`: addresses are handed out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The item rule needs bounds of its own, or the API server refuses the CRD
/// for what the rule could cost.
#[cfg(feature = "kube")]
fn exclude_ips(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 512,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 80,
            "x-kubernetes-validations": [{
                "rule": "self.split('..').size() <= 2 && self.split('..').all(a, isIP(a))",
                "message": "an excluded item must be an address or a range <first>..<last>"
            }]
        }
    })
}
