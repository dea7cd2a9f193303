//! The status of a Subnet, and when it may be deleted.

use lb_svc_crds::bounded::cut;
use lb_svc_crds::range::IpRange;
use lb_svc_crds::reason::Reason;

use crate::ipam::Usage;
use crate::model::{Condition, Subnet, SubnetStatus};

/// What is to be written to a Subnet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubnetPlan {
    /// Its status, if it differs.
    pub status: Option<SubnetStatus>,
    /// Whether to set (`true`) or remove (`false`) the finalizer.
    pub hold: Option<bool>,
}

/// The number of holders of claims that a message names.
const NAMED: usize = 5;

/// The bytes of a list of ranges. Scattered claims of a large Subnet would make a
/// status that the API server refuses (1.5 MiB); the counters count them all.
const RANGES_MAX: usize = 32 << 10;

/// Ranges as `a-b,c`; of many the first.
fn text(ranges: &[IpRange]) -> String {
    cut(&ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), RANGES_MAX)
}

/// The holders of claims, for people.
fn holders(usage: &Usage) -> String {
    let named: Vec<String> = usage.holders.iter().take(NAMED).map(ToString::to_string).collect();
    let more = usage.holders.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// Plans for a Subnet: its status by its claims, and the finalizer while there are
/// any.
pub fn plan(subnet: &Subnet, usage: &Usage) -> SubnetPlan {
    let condition = |kind: &str, status, reason: Reason, message: String| Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_string(),
        message,
    };
    let validated = match &usage.invalid {
        None => {
            let ignored = &subnet.spec.ignored.0;
            let mut rest = match ignored.is_empty() {
                true => String::new(),
                false => format!("; fields without effect here: {}", ignored.join(", ")),
            };
            rest.extend(subnet.unread.iter().map(|problem| format!("; {problem}")));
            condition("Validated", true, Reason::Valid, format!("the spec makes sense{rest}"))
        }
        Some(invalid) => condition("Validated", false, Reason::Invalid, invalid.to_string()),
    };
    let ready = match &usage.invalid {
        Some(invalid) => condition("Ready", false, Reason::Invalid, invalid.to_string()),
        None if subnet.deleting => {
            let message = format!(
                "waits for {} claim(s) to be given back by {}; hands out nothing",
                usage.using,
                holders(usage)
            );
            condition("Ready", false, Reason::Deleting, message)
        }
        None => condition("Ready", true, Reason::Ready, "hands out addresses".to_owned()),
    };
    let mut status = SubnetStatus {
        using: usage.using,
        available: usage.available,
        using_range: text(&usage.using_ranges),
        available_range: text(&usage.available_ranges),
        conditions: vec![ready, validated],
    };
    if subnet.deleting || usage.invalid.is_some() {
        status.available = 0;
        status.available_range = String::new();
    }
    let by_kind = |mut view: SubnetStatus| {
        view.conditions.sort_by(|a, b| a.kind.cmp(&b.kind));
        view
    };
    // A claim that is on its way relies on the finalizer that was seen.
    let hold = usage.using + usage.reserved > 0;
    SubnetPlan {
        status: (by_kind(subnet.status.clone()) != status).then_some(status),
        // A deletion that has begun takes no new finalizers.
        hold: (hold != subnet.held && !(hold && subnet.deleting)).then_some(hold),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::ipam::{AddressRequest, Allocator};
    use crate::model::ServiceRef;
    use crate::testing::subnet;

    fn planned(subnet: &Subnet) -> SubnetPlan {
        let mut allocator = Allocator::default();
        allocator.set_subnet("lan", &subnet.spec, None, subnet.deleting);
        plan(subnet, &allocator.usage("lan").unwrap())
    }

    #[test]
    fn what_cannot_be_read_of_its_annotations_is_said() {
        let subnet = Subnet { unread: vec!["annotation x means nothing".into()], ..subnet("10.0.0.0/24") };
        let conditions = planned(&subnet).status.unwrap().conditions;
        let validated = conditions.iter().find(|condition| condition.kind == "Validated").unwrap();
        assert_eq!(validated.message, "the spec makes sense; annotation x means nothing");
        assert!(validated.status);
    }

    #[test]
    fn valid_subnet_is_ready_and_written_once() {
        let mut subnet = subnet("10.0.0.0/24");
        let first = planned(&subnet);
        let status = first.status.unwrap();
        assert_eq!((status.using, status.available), (0, 253));
        assert_eq!(status.available_range, "10.0.0.2-10.0.0.254");
        assert_eq!(first.hold, None);
        subnet.status = status;
        subnet.status.conditions.reverse();
        assert_eq!(planned(&subnet), SubnetPlan::default());
    }

    #[test]
    fn b33_fields_without_effect_are_named() {
        let mut subnet = subnet("10.0.0.0/24");
        subnet.spec.ignored.0 = vec!["natOutgoing".into(), "vpc".into()];
        let status = planned(&subnet).status.unwrap();
        let validated = status.conditions.iter().find(|condition| condition.kind == "Validated").unwrap();
        assert!(validated.status && validated.message.ends_with("natOutgoing, vpc"), "{}", validated.message);
    }

    #[test]
    fn r42_many_ranges_fit_into_a_status() {
        let scattered = |last: u32| {
            let address = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + 2 * last));
            IpRange::between(address, address)
        };
        let using_ranges: Vec<IpRange> = (0..40_000).map(scattered).collect();
        let usage = Usage {
            using: 40_000,
            reserved: 0,
            holders: BTreeSet::new(),
            using_ranges,
            available: 0,
            available_ranges: Vec::new(),
            invalid: None,
        };
        let mut subnet = subnet("10.0.0.0/8");
        let status = plan(&subnet, &usage).status.unwrap();
        assert!(status.using_range.starts_with("10.0.0.0,10.0.0.2,") && status.using_range.ends_with('…'));
        assert!(status.using_range.len() <= RANGES_MAX + '…'.len_utf8());
        assert_eq!(status.using, 40_000);
        subnet.status = status;
        assert_eq!(plan(&subnet, &usage).status, None, "it reads back as itself");
    }

    #[test]
    fn invalid_subnet_says_why() {
        let status = planned(&subnet("10.0.0.0/32")).status.unwrap();
        assert!(status.conditions.iter().all(|condition| !condition.status));
        assert!(status.conditions[0].message.contains("single address"));
    }

    #[test]
    fn subnet_in_use_is_held_until_unused() {
        let usage = |using| Usage {
            using,
            reserved: 0,
            holders: (0..using).map(|n| ServiceRef::new("default", &format!("s{n}"))).collect(),
            using_ranges: Vec::new(),
            available: 1,
            available_ranges: Vec::new(),
            invalid: None,
        };
        let mut subnet = subnet("10.0.0.0/24");
        assert_eq!(plan(&subnet, &usage(1)).hold, Some(true));
        subnet.held = true;
        assert_eq!(plan(&subnet, &usage(1)).hold, None);
        subnet.deleting = true;
        let deleting = plan(&subnet, &usage(1));
        assert_eq!(deleting.hold, None);
        let status = deleting.status.unwrap();
        assert_eq!(status.available, 0);
        let message = &status.conditions[0].message;
        assert!(message.contains("by default/s0;"), "{message}");
        let message = &plan(&subnet, &usage(7)).status.unwrap().conditions[0].message;
        assert!(message.contains("default/s4 and 2 more;"), "{message}");
        assert_eq!(plan(&subnet, &usage(0)).hold, Some(false));
    }

    #[test]
    fn r39_reservation_counts_as_use() {
        let mut subnet = subnet("10.0.0.0/24");
        subnet.held = true;
        let mut allocator = Allocator::default();
        allocator.set_subnet("lan", &subnet.spec, None, false);
        let held = |allocator: &Allocator| plan(&subnet, &allocator.usage("lan").unwrap()).hold;
        assert_eq!(held(&allocator), Some(false));
        let request = AddressRequest {
            owner: crate::testing::service().id,
            provider: "lan.kube-system".parse().unwrap(),
            subnet: None,
            address: None,
            keep: false,
            limit: None,
        };
        let reservation = allocator.reserve(&request).unwrap();
        assert_eq!(held(&allocator), None);
        allocator.unreserve(&reservation);
        assert_eq!(held(&allocator), Some(false));
    }
}
