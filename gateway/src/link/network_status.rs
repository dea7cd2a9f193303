//! Multus's network-status annotation, mounted by the downward API.

use serde::Deserialize;

use crate::fault::Fault;

/// One network of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// `<namespace>/<nad>`, or the default network's own name.
    #[serde(default)]
    pub name: String,
    /// The interface's name in the pod.
    #[serde(default)]
    pub interface: String,
    /// Addresses from the network's own IPAM.
    #[serde(default)]
    pub ips: Vec<String>,
    /// Whether this is the pod's default network.
    #[serde(default)]
    pub default: bool,
}

/// Parses the annotation. The file is empty, or absent, until Multus has written
/// the annotation.
///
/// # Errors
/// If it is not JSON of the expected schema.
pub fn parse(text: &str) -> Result<Vec<Network>, Fault> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|error| Fault::NetworkStatusInvalid(error.to_string()))
}

/// The LAN's network among the pod's.
///
/// # Errors
/// If Multus has not reported it.
pub fn lan<'a>(networks: &'a [Network], attachment: &str) -> Result<&'a Network, Fault> {
    networks
        .iter()
        .find(|network| network.name == attachment && !network.default && !network.interface.is_empty())
        .ok_or_else(|| Fault::AttachmentPending {
            attachment: attachment.to_owned(),
            reported: networks.iter().map(|network| network.name.clone()).collect(),
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const STATUS: &str = r#"[
      {"name": "kindnet", "interface": "eth0", "ips": ["10.16.0.5"], "mac": "aa:aa:aa:aa:aa:aa", "default": true, "dns": {}},
      {"name": "kube-system/lb-svc-attachment", "interface": "net1", "mac": "bb:bb:bb:bb:bb:bb", "dns": {}, "mtu": 1500}
    ]"#;

    #[test]
    fn lan_is_found_by_its_attachment() {
        let networks = parse(STATUS).unwrap();
        let network = lan(&networks, "kube-system/lb-svc-attachment").unwrap();
        assert_eq!(network.interface, "net1");
        assert!(network.ips.is_empty());
    }

    #[test]
    fn attachment_not_reported_is_pending() {
        for text in ["", "\n", "[]", STATUS] {
            let networks = parse(text).unwrap();
            assert!(
                matches!(lan(&networks, "kube-system/other"), Err(Fault::AttachmentPending { .. })),
                "{text}"
            );
        }
        assert!(matches!(parse("{"), Err(Fault::NetworkStatusInvalid(_))));
    }
}
