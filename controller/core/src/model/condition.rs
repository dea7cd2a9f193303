//! Conditions and problems.

use lb_svc_crds::bounded::cut;
use lb_svc_crds::reason::Reason;

/// The longest message of one problem, in bytes. A condition may hold several,
/// and takes 32 KiB (Kubernetes API).
pub const MESSAGE_MAX: usize = 1024;

/// A condition of the controller on a Service, a Subnet or a pod, without its
/// times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: String,
    /// True or False.
    pub status: bool,
    /// One CamelCase word for the cause.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// A problem: one word for programs, one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, one word per cause.
    pub reason: String,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem that lb-svc itself finds. What a user wrote may be quoted in the
    /// message: it is cut to [`MESSAGE_MAX`] bytes.
    pub fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        Self::reported(reason.as_str(), message)
    }

    /// A problem that Kubernetes or a gateway reports under this reason. Its
    /// message is cut, too.
    pub fn reported(reason: &str, message: impl AsRef<str>) -> Self {
        Self { reason: reason.to_owned(), message: cut(message.as_ref(), MESSAGE_MAX) }
    }
}
