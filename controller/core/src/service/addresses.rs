//! The address that a Service asks for by an annotation: ours, or what MetalLB and
//! kube-vip read.

use std::net::IpAddr;

use lb_svc_crds::names::{ADDRESSES_ANNOTATION, OTHER_ADDRESSES_ANNOTATIONS};
use lb_svc_crds::reason::Reason;

use crate::model::{Problem, Service};

/// In the order in which they count.
fn all() -> impl Iterator<Item = &'static str> {
    std::iter::once(ADDRESSES_ANNOTATION).chain(OTHER_ADDRESSES_ANNOTATIONS)
}

/// Whether this is such an annotation.
pub fn is_annotation(name: &str) -> bool {
    all().any(|known| known == name)
}

/// The address that the annotations of `service` name, if they do. What of them, or
/// beside them, is not heeded is a warning.
///
/// # Errors
/// The annotation that counts is no address, or more than one of IPv4.
pub fn annotated(service: &Service, warnings: &mut Vec<Problem>) -> Result<Option<IpAddr>, Problem> {
    let given = |name: &'static str| {
        let text = service.annotations.get(name)?.trim();
        // What kube-vip takes for a request by DHCP.
        (!text.is_empty() && text != "0.0.0.0").then_some((name, text))
    };
    let mut given = all().filter_map(given);
    let Some((name, text)) = given.next() else { return Ok(None) };
    let address = parse(name, text, warnings)?;
    let field =
        Some(("spec.loadBalancerIP", service.load_balancer_ip.as_str())).filter(|(_, text)| !text.is_empty());
    let others = given.chain(field).filter(|(_, other)| *other != text && other.parse() != Ok(address));
    warnings.extend(others.map(|(other, _)| {
        let message =
            format!("{other} has no effect here: the annotation {name} names another address, remove one");
        Problem::new(Reason::NotHeeded, message)
    }));
    Ok(Some(address))
}

/// A list of addresses, of which one is IPv4 or there is only one.
fn parse(name: &str, text: &str, warnings: &mut Vec<Problem>) -> Result<IpAddr, Problem> {
    let invalid = |why: String| Problem::new(Reason::InvalidAddress, format!("annotation {name}: {why}"));
    let parse = |text: &str| text.trim().parse().map_err(|_| invalid(format!("{text:?} is not an address")));
    let addresses = text.split(',').map(parse).collect::<Result<Vec<IpAddr>, _>>()?;
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    match (&v4[..], &v6[..]) {
        ([address], []) | ([], [address]) => Ok(*address),
        ([address], _) => {
            let message =
                format!("annotation {name}: the IPv6 addresses are not served: gateways serve IPv4 only");
            warnings.push(Problem::new(Reason::UnsupportedFamily, message));
            Ok(*address)
        }
        _ => Err(invalid(format!("{text:?} is more than one address, and a Service has one"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::service;

    /// The address, or the reason why there is none, and the reasons of the warnings.
    fn read(annotations: &[(&str, &str)], field: &str) -> (Result<Option<String>, String>, Vec<String>) {
        let mut service = Service { load_balancer_ip: field.into(), ..service() };
        service.annotations.extend(annotations.iter().map(|(name, text)| ((*name).into(), (*text).into())));
        let mut warnings = Vec::new();
        let read = annotated(&service, &mut warnings);
        let read = read.map(|address| address.map(|address| address.to_string()));
        (read.map_err(|problem| problem.reason), warnings.into_iter().map(|warning| warning.reason).collect())
    }

    #[test]
    fn address_is_read_from_each_annotation_and_ours_comes_first() {
        let address = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read(&[], "172.18.0.9"), (Ok(None), vec![]));
        for name in all() {
            assert_eq!(read(&[(name, " 172.18.0.18 ")], ""), (address("172.18.0.18"), vec![]), "{name}");
        }
        let both = [(ADDRESSES_ANNOTATION, "172.18.0.18"), (OTHER_ADDRESSES_ANNOTATIONS[0], "172.18.0.19")];
        assert_eq!(read(&both, "172.18.0.18"), (address("172.18.0.18"), vec!["NotHeeded".into()]));
        assert_eq!(read(&both[..1], "172.18.0.20"), (address("172.18.0.18"), vec!["NotHeeded".into()]));
        assert_eq!(read(&[("kube-vip.io/loadbalancerIPs", "0.0.0.0")], ""), (Ok(None), vec![]));
        assert_eq!(read(&[(ADDRESSES_ANNOTATION, "")], ""), (Ok(None), vec![]));
    }

    #[test]
    fn list_is_read_as_far_as_it_can_be_served() {
        let list = |text: &str| read(&[(ADDRESSES_ANNOTATION, text)], "");
        let half = vec!["UnsupportedFamily".to_owned()];
        assert_eq!(list("fd00::18, 172.18.0.18"), (Ok(Some("172.18.0.18".into())), half));
        assert_eq!(list("fd00::18"), (Ok(Some("fd00::18".into())), vec![]), "no Subnet has it");
        for wrong in ["172.18.0.18,172.18.0.19", "172.18.0", "172.18.0.18,", "172.18.0.0/24", "a"] {
            assert_eq!(list(wrong), (Err("InvalidAddress".into()), vec![]), "{wrong}");
        }
    }
}
