//! Subnets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lb_svc_crds::SubnetSpec;

use super::Condition;
use crate::ipam::Rules;

/// A Subnet as last seen, beside what the allocator keeps of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Subnet {
    /// Its uid.
    pub uid: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// `metadata.generation`, for conditions.
    pub generation: Option<i64>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether it has the controller's finalizer.
    pub held: bool,
    /// Its spec.
    pub spec: SubnetSpec,
    /// To whom it hands out addresses, by its annotations.
    pub rules: Rules,
    /// What of its annotations cannot be read.
    pub unread: Vec<String>,
    /// Its status, without the conditions' times.
    pub status: SubnetStatus,
    /// When each condition last changed its status.
    pub since: BTreeMap<String, Timestamp>,
}

/// A Subnet's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubnetStatus {
    /// `v4usingIPs`.
    pub using: u64,
    /// `v4availableIPs`.
    pub available: u64,
    /// `v4usingIPrange`.
    pub using_range: String,
    /// `v4availableIPrange`.
    pub available_range: String,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}
