//! Attachments: NetworkAttachmentDefinitions.

/// A NetworkAttachmentDefinition as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The L2 segment it is on, as far as its configuration says: two attachments of
    /// one L2 segment are one network.
    pub l2_segment: Option<String>,
    /// The extended resource that a pod needs one of for it.
    pub resource: Option<String>,
    /// Whether its interfaces share the hardware address of the node's.
    pub shared: bool,
    /// Digest of what interfaces are made from, however it is spelled.
    pub digest: String,
    /// Why no interface can be made from it.
    pub fault: Option<String>,
}
