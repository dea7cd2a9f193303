//! What the controller tells a gateway ([`GatewayConfig`], in a ConfigMap, and handed
//! over at [`PUSH_PATH`](crate::names::PUSH_PATH)) and what the gateway answers ([`GatewayStatus`], over HTTP).
//!
//! Both carry a version. Either side may be one version older or newer than
//! the other: unknown fields are ignored, and a field that is new in a version
//! has a default that means what the version before did.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::feature::Feature;

/// Version of [`GatewayConfig`] that this build writes.
pub const CONFIG_VERSION: u32 = 1;

/// The version where clients are limited: a gateway that would pass over
/// [`Frontend::clients`] is not to take it.
pub const LIMITED_VERSION: u32 = 3;

/// The version where frontends may lead straight to endpoints
/// ([`Target::Endpoints`]), which a gateway before it cannot read.
pub const DIRECT_VERSION: u32 = 5;

/// The version where a gateway needs the features that [`GatewayConfig::requires`]
/// names: one that does not know the field is not to take it.
pub const REQUIRES_VERSION: u32 = 7;

/// The oldest and the newest version of [`GatewayConfig`] that this build of
/// the gateway carries out.
pub const CONFIG_VERSIONS: std::ops::RangeInclusive<u32> = 1..=REQUIRES_VERSION;

/// See [`Election::interval_ms`].
pub const ADVERTISEMENT_INTERVAL_MS: u16 = 50;

/// See [`Election::drain_seconds`].
pub const DRAIN_SECONDS: u16 = 30;

/// A gateway's whole desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayConfig {
    /// The oldest of [`CONFIG_VERSION`], [`LIMITED_VERSION`], [`DIRECT_VERSION`] and
    /// [`REQUIRES_VERSION`] that knows all that is in it.
    pub version: u32,
    /// The features without a version of their own that a gateway needs to carry it out,
    /// by name, see [`crate::feature`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub requires: BTreeSet<String>,
    /// The attachment, `<namespace>/<nad>`, by which Multus's network-status
    /// names the interface.
    pub attachment: String,
    /// The addresses to own on that interface.
    pub addresses: Vec<Address>,
    /// What to serve on them.
    pub frontends: Vec<Frontend>,
    /// How connections are led to their targets. Earlier gateways know
    /// iptables only.
    #[serde(default, skip_serializing_if = "NatBackend::is_default")]
    pub nat_backend: NatBackend,
    /// How those of the gateway's pods that have a key agree on which of them
    /// owns the addresses. A pod without one is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<Election>,
}

/// What programs a gateway's NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NatBackend {
    /// iptables, of the nf_tables variant: a rule for each port, as people know
    /// to read them.
    #[default]
    Iptables,
    /// nftables: an element of a map for each port.
    Nftables,
}

impl NatBackend {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::str::FromStr for NatBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "iptables" => Ok(Self::Iptables),
            "nftables" => Ok(Self::Nftables),
            other => Err(format!("{other:?} is neither \"iptables\" nor \"nftables\"")),
        }
    }
}

/// The election among a gateway's pods. Its key is mounted beside the
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Election {
    /// The gateway, as its pods name it to one another: a UUID (RFC 9562), the
    /// uid of the Service it was made for.
    pub gateway: String,
    /// Between two advertisements of the active pod, in milliseconds. A pod
    /// that falls silent is replaced after between three and four of them.
    pub interval_ms: u16,
    /// The hardware addresses of pods of this gateway that may answer for the
    /// addresses and take no part in the election: those from before it had one.
    /// A pod that starts alone waits for as long as one of them answers, and 10 s
    /// at most for any other host; with `None`, as of earlier controllers, for all alike,
    /// as earlier gateways do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessors: Option<Vec<String>>,
    /// For how many seconds at most a pod that ends goes on leading the connections that
    /// it has, while another one owns the addresses. Earlier gateways end at once.
    #[serde(default = "drain_seconds", skip_serializing_if = "is_drain_seconds")]
    pub drain_seconds: u16,
}

fn drain_seconds() -> u16 {
    DRAIN_SECONDS
}

fn is_drain_seconds(seconds: &u16) -> bool {
    *seconds == DRAIN_SECONDS
}

/// An address to own, and the network it stands in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The Subnet's CIDR, network address first.
    pub cidr: IpNet,
    /// The LAN's router towards everyone outside the CIDR, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The Subnet's name.
    pub subnet: String,
    /// Whether the LAN has to be asked for it before it is taken into service:
    /// another host may have it. Earlier gateways do not ask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
}

/// One Service's ports on some of the gateway's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// The Service, `<namespace>/<name>`.
    pub service: String,
    /// Where clients connect to; each is one of [`GatewayConfig::addresses`].
    pub addresses: Vec<IpAddr>,
    /// Where their connections go.
    pub target: Target,
    /// The ports served, whether or not there are endpoints for them.
    pub ports: Vec<Port>,
    /// The networks whose hosts may connect; absent, everybody may. Not before
    /// [`LIMITED_VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<IpNet>>,
    /// The header that targets are sent before what a client sends: the gateway accepts
    /// connections to the TCP ports itself and connects to the target. Absent, it
    /// forwards them. Needs [`Feature::ProxyProtocol`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// A header that tells a target the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyProtocol {
    /// The PROXY protocol, version 2.
    V2,
}

impl std::str::FromStr for ProxyProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "v2" => Ok(Self::V2),
            other => Err(format!("{other:?} is not \"v2\"")),
        }
    }
}

/// Where a frontend's connections go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Target {
    /// To the Service's ClusterIPs, one per family, on the port's own number.
    #[serde(rename_all = "camelCase")]
    ClusterIp {
        /// The ClusterIPs.
        addresses: Vec<IpAddr>,
    },
    /// Straight to the Service's endpoints. Not before [`DIRECT_VERSION`].
    #[serde(rename_all = "camelCase")]
    Endpoints {
        /// Who they are, by the ports they serve. A port that is in none of
        /// them, or has no address there, is refused.
        subsets: Vec<Subset>,
        /// For how many seconds after its last connection a client is led to
        /// the same endpoint (Kubernetes API:
        /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`); absent, each
        /// connection goes anywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affinity_seconds: Option<u32>,
        /// How the gateway finds out which of them are well; absent, all are
        /// taken to be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<HealthCheck>,
    },
}

/// Endpoints that serve the same ports by the same numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// The frontend's ports that they serve.
    pub ports: Vec<TargetPort>,
    /// Where connections may go.
    pub addresses: Vec<IpAddr>,
    /// Where no new connection goes, while those of TCP that are there live
    /// on: endpoints on their way out, or not ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<IpAddr>,
}

/// A frontend's port, and the endpoints' own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetPort {
    /// Transport protocol.
    pub protocol: Transport,
    /// The port clients connect to.
    pub port: u16,
    /// The endpoints' port.
    pub target_port: u16,
}

/// How an endpoint is asked whether it is well. Endpoints of UDP ports are not
/// asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// Asked for by HTTP GET, an answer of 200 to 399 is good; absent, that it
    /// accepts a TCP connection is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The frontend's TCP port whose targets are asked, for all ports; absent, those
    /// of each TCP port are, for that port. A gateway that does not know the field
    /// asks those of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Between two questions, in milliseconds.
    pub interval_ms: u32,
    /// For how long an answer is waited for, in milliseconds.
    pub timeout_ms: u32,
    /// So many good answers in a row make an endpoint well again. The first
    /// one of all does so alone.
    pub rise: u32,
    /// So many failures in a row make it unwell.
    pub fall: u32,
}

/// One port of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Transport protocol.
    pub protocol: Transport,
    /// The port clients connect to, and of the ClusterIP.
    pub port: u16,
}

/// A transport protocol a gateway forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum Transport {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

impl Transport {
    /// Lower case, as iptables and the kernel's `/proc` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The protocol number (IANA; `linux/in.h`).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What a gateway says of itself, at `/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// The gateway's build, for people.
    #[serde(deserialize_with = "bounded::text::<_, 128>")]
    pub build: String,
    /// SHA-256 (hex) of the configuration file that the kernel was last seen
    /// to carry out in full. Absent until the first one is.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bounded::optional_text::<_, 128>")]
    pub digest: Option<String>,
    /// SHA-256 (hex) of the configuration as last pushed, or read from the file, carried
    /// out or not. Absent where the file is refused for its signature.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bounded::optional_text::<_, 128>")]
    pub seen: Option<String>,
    /// The generation of the configuration in force, if it is a signed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The addresses programmed.
    #[serde(deserialize_with = "bounded::list::<_, _, 4096>")]
    pub addresses: Vec<IpAddr>,
    /// The addresses that are withheld because another host in the LAN has
    /// them, with its hardware address.
    #[serde(deserialize_with = "bounded::map::<_, _, 64, 32>")]
    pub conflicts: BTreeMap<IpAddr, String>,
    /// The endpoints that health checks have not found well, or not yet:
    /// `<address>:<port>`. They get no new connections while there are others.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", deserialize_with = "bounded::set::<_, _, 16384>")]
    pub unhealthy: BTreeSet<SocketAddr>,
    /// The LAN interface, once Multus reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// The pod's part in the election, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election: Option<ElectionStatus>,
    /// What keeps the gateway from carrying out its configuration, by reason
    /// (CamelCase, one word per cause); the value is one sentence for people.
    #[serde(deserialize_with = "bounded::text_map::<_, 32, 512>")]
    pub faults: BTreeMap<String, String>,
    /// What the gateway does less well than it should, though it carries out its
    /// configuration; as [`Self::faults`]. Earlier gateways have none.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "bounded::text_map::<_, 32, 512>"
    )]
    pub limits: BTreeMap<String, String>,
    /// What the gateway is able to do, by name, see [`crate::feature`]. Earlier gateways
    /// name nothing.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", deserialize_with = "bounded::text_set::<_, 64, 32>")]
    pub features: BTreeSet<String>,
    /// The Services whose part of the configuration the kernel was last seen to carry
    /// out, each with the part's digest, see [`crate::parts`]. Earlier gateways do not say;
    /// what they say of the whole is [`Self::digest`].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text_map::<_, 4096, 128, 64>"
    )]
    pub parts: Option<BTreeMap<String, String>>,
}

impl GatewayStatus {
    /// Whether the gateway is able to do this; `None` if it does not say what it is able
    /// to do, as earlier ones do not.
    pub fn can(&self, feature: Feature) -> Option<bool> {
        (!self.features.is_empty()).then(|| self.features.contains(feature.name()))
    }
}

/// A pod's part in the election.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElectionStatus {
    /// What the pod is.
    pub role: Role,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why, for people.
    #[serde(deserialize_with = "bounded::text::<_, 256>")]
    pub why: String,
    /// How often the addresses were taken over, as far as this pod knows.
    pub term: u64,
    /// The name of the pod that is active, if this pod knows.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bounded::optional_text::<_, 256>")]
    pub active: Option<String>,
    /// The names of the other pods that are heard.
    #[serde(deserialize_with = "bounded::texts::<_, 16, 256>")]
    pub peers: Vec<String>,
    /// How often two pods were active at once and one gave way.
    pub splits: u64,
}

/// What a pod is in the election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// It does not take part yet.
    #[default]
    Joining,
    /// It waits for the active one to fall silent.
    Standby,
    /// It owns the addresses.
    Active,
}

/// A network interface of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name in the pod.
    #[serde(deserialize_with = "bounded::text::<_, 32>")]
    pub name: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(deserialize_with = "bounded::text::<_, 32>")]
    pub mac: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{
      "version": 1,
      "attachment": "kube-system/lb-svc-attachment",
      "addresses": [
        {"address": "172.18.0.18", "cidr": "172.18.0.0/16", "gateway": "172.18.0.1", "subnet": "attach-subnet"}
      ],
      "frontends": [{
        "service": "default/test-service",
        "addresses": ["172.18.0.18"],
        "target": {"kind": "clusterIp", "addresses": ["10.109.201.193"]},
        "ports": [{"protocol": "TCP", "port": 80}],
        "somethingNewer": true
      }]
    }"#;

    /// The wire format is a contract between releases: this text must parse
    /// for as long as version 1 is carried out.
    #[test]
    fn config_of_version_1_is_read() {
        let config: GatewayConfig = serde_json::from_str(CONFIG).unwrap();
        assert!(CONFIG_VERSIONS.contains(&config.version));
        let again: GatewayConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn status_of_other_versions_is_read() {
        let status: GatewayStatus = serde_json::from_str(r#"{"digest":"ab","later":1}"#).unwrap();
        assert_eq!(status.digest.as_deref(), Some("ab"));
    }
}
