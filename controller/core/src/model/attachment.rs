//! Attachments: NetworkAttachmentDefinitions.

/// A NetworkAttachmentDefinition as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The wire it is on, as far as its configuration says: two attachments of
    /// one wire are one network.
    pub wire: Option<String>,
    /// The extended resource that a pod needs one of for it.
    pub resource: Option<String>,
    /// Digest of what interfaces are made from, however it is spelled.
    pub digest: String,
    /// Why no interface can be made from it.
    pub fault: Option<String>,
}
