//! Features: what a gateway has to be able to do, by name.
//!
//! ```text
//!  controller                                            gateway
//!  GatewayConfig: version, requires  ──────────────▶  refuses what it does not know
//!  what it may count on              ◀── features ──  GatewayStatus
//! ```
//!
//! Versions are in a row, and features are not: one that is new here is not the one after
//! all others there. A configuration requires the features that it makes use of, and a
//! gateway without one of them carries none of it out. What earlier gateways can do is
//! known by versions only, so a feature that had one keeps it. A feature from now on has
//! none: [`REQUIRES_VERSION`] keeps gateways that know of no features from a configuration
//! that requires one.

use std::collections::BTreeSet;

use crate::gateway::{
    CONFIG_VERSION, DIRECT_VERSION, GatewayConfig, LIMITED_VERSION, REQUIRES_VERSION, Target,
};

/// Something that a gateway is able to do, beyond what all of them are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// It lets in the clients only that a frontend names
    /// ([`Frontend::clients`](crate::gateway::Frontend::clients)).
    LimitedClients,
    /// It leads connections straight to endpoints ([`Target::Endpoints`]).
    Direct,
    /// It takes its configuration by HTTP ([`PUSH_PATH`](crate::names::PUSH_PATH)).
    Push,
    /// It says of each Service whether its part is in force
    /// ([`GatewayStatus::parts`](crate::gateway::GatewayStatus::parts)).
    Parts,
    /// It has backends know the client by a header
    /// ([`Frontend::proxy_protocol`](crate::gateway::Frontend::proxy_protocol)).
    ProxyProtocol,
}

impl Feature {
    /// The features of this build's gateway.
    pub const ALL: [Self; 5] =
        [Self::LimitedClients, Self::Direct, Self::Push, Self::Parts, Self::ProxyProtocol];

    /// Its name: once released it keeps its meaning.
    pub fn name(self) -> &'static str {
        match self {
            Self::LimitedClients => "limited-clients",
            Self::Direct => "direct",
            Self::Push => "push",
            Self::Parts => "parts",
            Self::ProxyProtocol => "proxy-protocol",
        }
    }

    /// The version of configurations that it came with; `None` for one that came since.
    fn version(self) -> Option<u32> {
        match self {
            Self::LimitedClients => Some(LIMITED_VERSION),
            Self::Direct => Some(DIRECT_VERSION),
            Self::Push | Self::Parts | Self::ProxyProtocol => None,
        }
    }
}

/// The features' names, as a gateway of this build reports them.
pub fn names() -> BTreeSet<String> {
    Feature::ALL.map(|feature| feature.name().to_owned()).into()
}

impl GatewayConfig {
    /// The features that a gateway needs to carry it out.
    pub fn features(&self) -> BTreeSet<Feature> {
        let frontends = self.frontends.iter();
        let services: BTreeSet<&String> = frontends.clone().map(|frontend| &frontend.service).collect();
        let is_direct = |target: &Target| matches!(target, Target::Endpoints { .. });
        let needs = [
            (Feature::LimitedClients, frontends.clone().any(|frontend| frontend.clients.is_some())),
            (Feature::Direct, frontends.clone().any(|frontend| is_direct(&frontend.target))),
            // Without it one Service's change would be waited for by all others.
            (Feature::Parts, services.len() > 1),
            (Feature::ProxyProtocol, frontends.clone().any(|frontend| frontend.proxy_protocol.is_some())),
        ];
        needs.into_iter().filter(|(_, is_needed)| *is_needed).map(|(feature, _)| feature).collect()
    }

    /// The same, saying what a gateway needs to carry it out.
    pub fn with_requirements(mut self) -> Self {
        let features = self.features();
        let named = features.iter().filter(|feature| feature.version().is_none());
        self.requires = named.map(|feature| feature.name().to_owned()).collect();
        self.version = match self.requires.is_empty() {
            true => features.into_iter().filter_map(Feature::version).fold(CONFIG_VERSION, u32::max),
            false => REQUIRES_VERSION,
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a configuration with these fields of its frontends says that it needs.
    fn needs(frontends: &[(&str, &str)]) -> (u32, Vec<String>) {
        let frontend = |(service, more): &(&str, &str)| {
            let target = r#""target":{"kind":"clusterIp","addresses":[]}"#;
            let more =
                if more.contains("\"target\"") { (*more).to_owned() } else { format!("{target}{more}") };
            format!(r#"{{"service":"{service}","addresses":[],"ports":[],{more}}}"#)
        };
        let frontends = frontends.iter().map(frontend).collect::<Vec<_>>().join(",");
        let text = format!(r#"{{"version":0,"attachment":"a/b","addresses":[],"frontends":[{frontends}]}}"#);
        let config = serde_json::from_str::<GatewayConfig>(&text).unwrap().with_requirements();
        assert!(!serde_json::to_string(&config).unwrap().contains("requires") || !config.requires.is_empty());
        (config.version, config.requires.into_iter().collect())
    }

    #[test]
    fn features_of_earlier_releases_are_required_by_their_versions() {
        let (limited, direct) = (r#","clients":[]"#, r#""target":{"kind":"endpoints","subsets":[]}"#);
        let both = format!(r#"{direct},"clients":[]"#);
        assert_eq!(needs(&[("a/a", "")]), (CONFIG_VERSION, vec![]));
        assert_eq!(needs(&[("a/a", limited)]), (LIMITED_VERSION, vec![]));
        assert_eq!(needs(&[("a/a", direct)]), (DIRECT_VERSION, vec![]));
        assert_eq!(needs(&[("a/a", &both)]), (DIRECT_VERSION, vec![]));
        assert_eq!(needs(&[("a/a", ""), ("a/a", "")]), (CONFIG_VERSION, vec![]));
    }

    #[test]
    fn feature_without_a_version_is_required_by_name() {
        assert_eq!(needs(&[("a/a", ""), ("a/b", "")]), (REQUIRES_VERSION, vec!["parts".to_owned()]));
        let proxied = r#","proxyProtocol":"v2""#;
        assert_eq!(needs(&[("a/a", proxied)]), (REQUIRES_VERSION, vec!["proxy-protocol".to_owned()]));
    }

    #[test]
    fn feature_names_are_unique_and_within_their_bound() {
        assert_eq!(names().len(), Feature::ALL.len());
        assert!(names().iter().all(|name| name.len() <= 32));
    }
}
