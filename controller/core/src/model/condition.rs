//! Conditions, and what they say.

/// A condition of ours on a Service or a Subnet, without its times.
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

/// Something that is wrong: one word for programs, one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, one word per cause.
    pub reason: String,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}
