//! What a gateway's Deployment was made from, in short.

use lb_svc_crds::names;
use serde_json::Value;

/// Digests of what a Deployment was made from, so that it can be told later
/// what has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateHash {
    /// What is the same for all gateways on an attachment: build,
    /// configuration, attachment.
    pub all: String,
    /// What is this one's own.
    pub own: String,
}

impl TemplateHash {
    /// What a Deployment says of itself; empty where it says nothing.
    pub fn of(deployment: &Value) -> Self {
        let said = deployment["metadata"]["annotations"][names::TEMPLATE_ANNOTATION].as_str();
        let (all, own) = said.and_then(|said| said.split_once('.')).unwrap_or_default();
        Self { all: all.to_owned(), own: own.to_owned() }
    }
}

impl std::fmt::Display for TemplateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.all, self.own)
    }
}
