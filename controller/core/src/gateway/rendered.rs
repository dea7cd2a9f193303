//! A configuration as text, and the digests by which pods acknowledge it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_svc_crds::gateway::{Frontend, GatewayConfig, GatewayStatus, Subset, Target};
use lb_svc_crds::reason::Reason;
use lb_svc_crds::{names, parts};

use crate::action::Action;
use crate::backend::convergence::EndpointTargets;
use crate::model::{OwnedObject, Pod, Problem, ServiceRef};
use crate::observed::ObservedGateway;

/// The most bytes of a configuration: beside it in the ConfigMap is its seal.
pub(super) const CONFIG_MAX: usize = names::CONFIG_MAP_MAX - 1024;

/// A configuration as it goes into the ConfigMap.
#[derive(Debug)]
pub struct Rendered {
    text: String,
    /// The same, before the Services' first addresses had been in service: the LAN is to
    /// be probed for them. A gateway that carries that out carries out this.
    unproven: String,
    /// The digests of both.
    pub digests: Digests,
    /// Those of one Service's part in both.
    pub part: PartDigests,
    /// That Service's endpoint targets, if it has any.
    pub targets: Option<EndpointTargets>,
    /// That endpoints are left out, for a ConfigMap does not hold all.
    pub left_out: Option<Problem>,
}

impl Rendered {
    /// The configuration, as far as a ConfigMap holds it, for a run about `service`.
    ///
    /// # Errors
    /// A ConfigMap cannot hold it.
    pub fn of(config: GatewayConfig, service: &ServiceRef) -> Result<Self, Problem> {
        let whole = Self::whole(config.clone(), service);
        if whole.unproven.len() <= CONFIG_MAX {
            return Ok(whole);
        }
        let (config, left_out) = fit(config, whole.unproven.len())?;
        Ok(Self { left_out: Some(left_out), ..Self::whole(config, service) })
    }

    /// The whole configuration, however large.
    fn whole(config: GatewayConfig, service: &ServiceRef) -> Self {
        let service = service.to_string();
        let text = render(&config);
        let mut config = unproven(config);
        let unproven = render(&config);
        let mut own = config.frontends.iter_mut().filter(|frontend| frontend.service == service);
        let targets = own.find_map(|frontend| {
            let Target::Endpoints { subsets, check, .. } = &mut frontend.target else { return None };
            Some((frontend.ports.clone(), std::mem::take(subsets), check.clone()))
        });
        let targets = targets.map(|(ports, subsets, check)| {
            let rest = part_digest(&render(&config), &service);
            EndpointTargets { ports, subsets, check, rest }
        });
        let digests = Digests([&text, &unproven].map(|text| names::digest(text.as_bytes())));
        let parts = [&text, &unproven].map(|text| part_digest(text, &service));
        let part = PartDigests { service, whole: digests.clone(), parts };
        Self { text, unproven, digests, part, targets, left_out: None }
    }

    /// Writes the ConfigMap, unless it is so, and signed. `written`: how long ago it
    /// was last written.
    pub fn write(&self, gateway: &ObservedGateway, written: Option<Duration>) -> Write {
        if gateway.is_sealed() && gateway.config.as_ref().is_some_and(|known| known.content == self.text) {
            return Write::Not;
        }
        let rest = written.and_then(|written| interval(self.text.len()).checked_sub(written));
        match rest.filter(|rest| !rest.is_zero()) {
            Some(rest) => Write::Later(rest),
            None => Write::Now(Action::WriteConfig(self.text.clone())),
        }
    }

    /// Whether the ConfigMap says this already, or did before the Services' first
    /// addresses had been in service.
    pub fn is_written(&self, known: Option<&OwnedObject<String>>) -> bool {
        known.is_some_and(|known| known.content == self.text || known.content == self.unproven)
    }
}

/// Whether a ConfigMap is to be written.
#[derive(Debug)]
pub enum Write {
    /// It is as it is to be.
    Not,
    /// It is, after this time.
    Later(Duration),
    /// It is.
    Now(Action),
}

/// The shortest time between two writes of a ConfigMap of so many bytes: the
/// first and the last size with a pause of its own, and the pause. Endpoints may
/// change with each pod of a large roll-out, and each write is all of it.
const INTERVAL: [(u64, Duration); 2] =
    [(8 * 1024, Duration::from_millis(50)), (128 * 1024, Duration::from_secs(1))];

fn interval(bytes: usize) -> Duration {
    let [(small, shortest), (large, longest)] = INTERVAL;
    let above = u64::try_from(bytes).unwrap_or(u64::MAX).clamp(small, large) - small;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or_default();
    shortest + Duration::from_millis(millis(longest - shortest) * above / (large - small))
}

/// What a ConfigMap holds of a configuration that takes `whole` bytes, which is too
/// many, and what is left out: the endpoints that are on their way out, and if need be
/// the last of those that are ready.
///
/// # Errors
/// It is too large without endpoints.
fn fit(mut config: GatewayConfig, whole: usize) -> Result<(GatewayConfig, Problem), Problem> {
    let mut without = config.clone();
    for subset in subsets_of(&mut without) {
        subset.addresses.clear();
        subset.draining.clear();
    }
    let base = render(&unproven(without)).len();
    if base > CONFIG_MAX {
        let message = format!(
            "the gateway's configuration is {whole} bytes, a ConfigMap holds {CONFIG_MAX}: use fewer ports, or fewer endpoints"
        );
        return Err(Problem::new(Reason::ConfigTooLarge, message));
    }
    // The bytes of the first so many addresses of each: in quotes, and with a comma.
    let lengths = subsets_of(&mut config).map(|subset| {
        let mut sum = 0;
        let sums = subset.addresses.iter().map(|address| {
            sum += address.to_string().len() + 3;
            sum
        });
        sums.collect::<Vec<usize>>()
    });
    let lengths: Vec<Vec<usize>> = lengths.collect();
    let fits = |most: usize| {
        let of = |sums: &Vec<usize>| most.min(sums.len()).checked_sub(1).map_or(0, |last| sums[last]);
        base + lengths.iter().map(of).sum::<usize>() <= CONFIG_MAX
    };
    let (mut most, mut too_many) = (0, lengths.iter().map(Vec::len).max().unwrap_or_default() + 1);
    while most + 1 < too_many {
        let middle = usize::midpoint(most, too_many);
        *(if fits(middle) { &mut most } else { &mut too_many }) = middle;
    }
    for subset in subsets_of(&mut config) {
        subset.addresses.truncate(most);
        subset.draining.clear();
    }
    // In thousands: what is said is not to change with each endpoint.
    let thousands = |most: usize| lengths.iter().map(|sums| sums.len().min(most)).sum::<usize>() / 1000;
    let message = format!(
        "the gateway's configuration is more than the {CONFIG_MAX} bytes that a ConfigMap holds: about {} of {} thousand ready endpoints get connections, and those on their way out keep none; use fewer, or several Services",
        thousands(most),
        thousands(usize::MAX),
    );
    Ok((config, Problem::new(Reason::ConfigTooLarge, message)))
}

fn subsets_of(config: &mut GatewayConfig) -> impl Iterator<Item = &mut Subset> {
    config.frontends.iter_mut().flat_map(|frontend| match &mut frontend.target {
        Target::Endpoints { subsets, .. } => subsets.as_mut_slice(),
        Target::ClusterIp { .. } => &mut [],
    })
}

/// The configuration from before the first address of each Service had been in service.
fn unproven(mut config: GatewayConfig) -> GatewayConfig {
    let mut firsts = BTreeMap::new();
    for Frontend { service, addresses, .. } in &config.frontends {
        firsts.entry(service).or_insert(addresses.first());
    }
    let firsts: BTreeSet<IpAddr> = firsts.into_values().flatten().copied().collect();
    for address in config.addresses.iter_mut().filter(|address| firsts.contains(&address.address)) {
        address.probe = true;
    }
    config
}

/// The digest of a Service's part of a rendered configuration.
fn part_digest(text: &str, service: &str) -> String {
    // What was just rendered can be read.
    parts::digests(text).ok().and_then(|mut parts| parts.remove(service)).unwrap_or_default()
}

fn render(config: &GatewayConfig) -> String {
    // Serialising plain structs of strings and numbers cannot fail.
    serde_json::to_string(config).unwrap_or_default()
}

/// The digests by which pods acknowledge a whole [`Rendered`] configuration: of its text,
/// and of that from before its Services' first addresses had been in service.
#[derive(Clone, Debug)]
pub struct Digests([String; 2]);

impl Digests {
    /// The digest of the text.
    pub fn wanted(&self) -> &str {
        &self.0[0]
    }

    /// Whether a pod reports that it carries the configuration out.
    pub fn acknowledged_by(&self, status: &GatewayStatus) -> bool {
        status.digest.as_deref().is_some_and(|digest| self.is_any(digest))
    }

    /// Whether the pod need not be given another configuration than that with
    /// this digest. Where there are several pods, each has to know that the LAN
    /// has been probed: one that takes over must not probe it again.
    pub fn suits(&self, pod: &Pod, digest: &str) -> bool {
        if pod.member { digest == self.wanted() } else { self.is_any(digest) }
    }

    fn is_any(&self, digest: &str) -> bool {
        self.0.iter().any(|known| known == digest)
    }
}

/// The digests by which pods acknowledge one Service's part of a configuration. Pods of
/// earlier releases do not say what they carry out of which Service: those acknowledge it
/// with the whole.
#[derive(Clone, Debug)]
pub struct PartDigests {
    service: String,
    whole: Digests,
    /// Of the part in both texts.
    parts: [String; 2],
}

impl PartDigests {
    /// The digests of what a pod is to carry out, whichever it reports.
    pub fn wanted(&self) -> [&str; 2] {
        [self.whole.wanted(), &self.parts[0]]
    }

    /// The digest of what a pod reports to carry out for the Service.
    pub fn reported<'a>(&self, status: &'a GatewayStatus) -> Option<&'a str> {
        match &status.parts {
            Some(parts) => parts.get(&self.service).map(String::as_str),
            None => status.digest.as_deref(),
        }
    }

    /// Whether a pod reports that it carries the part out.
    pub fn acknowledged_by(&self, status: &GatewayStatus) -> bool {
        let is_wanted = |digest: &str| match &status.parts {
            Some(_) => self.parts.iter().any(|part| part == digest),
            None => self.whole.is_any(digest),
        };
        self.reported(status).is_some_and(is_wanted)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Endpoint, EndpointSlice};
    use crate::observed::Observed;
    use crate::service::conditions::{GATEWAY_READY, LIMITED};
    use crate::service::plan::{Requeue, plan};
    use crate::testing::gateway::{
        carries_out, config_of, config_written, direct_access, reason, status, target_addresses, tcp_slice,
    };
    use crate::testing::port;
    use serde_json::json;

    /// The Service of [`part`].
    pub(crate) const SERVICE: &str = "default/web";

    /// A part with this digest, in a configuration of the same.
    pub(crate) fn part(digest: &str) -> PartDigests {
        let digests = || [digest.to_owned(), format!("{digest}, unproven")];
        PartDigests { service: SERVICE.to_owned(), whole: Digests(digests()), parts: digests() }
    }

    #[test]
    fn r25_writes_are_paced_by_size_and_the_last_one_has_the_latest() {
        let millis = |bytes| interval(bytes).as_millis();
        assert_eq!([0, 8_192, 68 * 1024, 131_072, CONFIG_MAX].map(millis), [50, 50, 525, 1000, 1000]);

        let mut observed = direct_access();
        observed.endpoints.slices = vec![tcp_slice(&[(1, "ready"), (2, "ready"), (3, "ready")])];
        observed.remembered.config_written = Some(Duration::from_millis(20));
        let planned = plan(&observed);
        assert_eq!(config_of(&planned), None);
        let nudges = |action: &Action| matches!(action, Action::AnnotatePod { .. });
        assert!(!planned.steps().any(nudges), "for what is not written yet");
        let Requeue::Unconverged { within: Some(within), restart: false, .. } = planned.next else {
            panic!("{:?}", planned.next)
        };
        assert_eq!(within, Duration::from_millis(30), "it is come back to");

        observed.endpoints.slices = vec![tcp_slice(&[(1, "ready"), (4, "ready")])];
        for written in [Some(Duration::from_millis(50)), None] {
            observed.remembered.config_written = written;
            let planned = plan(&observed);
            assert_eq!(target_addresses(&config_written(&planned)), ["10.0.0.1", "10.0.0.4"]);
            assert!(planned.steps().any(nudges));
        }
    }

    #[test]
    fn r50_of_too_many_endpoints_ready_ones_are_written_as_far_as_they_fit() {
        let mut observed = direct_access();
        let many = |n: u8, count: u16, state: &str| {
            let mut slice = EndpointSlice::clone(&tcp_slice(&[(1, state)]));
            let one = slice.endpoints[0];
            slice.endpoints = (0..count)
                .map(|k| Endpoint { address: (u32::from(k) + (u32::from(n) << 24)).into(), ..one })
                .collect();
            Arc::new(slice)
        };
        let written = |observed: &Observed| {
            let planned = plan(observed);
            let text = config_of(&planned).expect("what fits");
            assert!(text.len() <= CONFIG_MAX);
            let (ingress, conditions) = status(&planned).unwrap();
            assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
            let limit = conditions.iter().find(|condition| condition.kind == LIMITED).unwrap();
            let limit = (limit.reason.clone(), limit.message.clone());
            let mut config = config_written(&planned);
            let draining: usize = subsets_of(&mut config).map(|subset| subset.draining.len()).sum();
            (target_addresses(&config), draining, text.len(), limit)
        };
        // Those on their way out go first.
        observed.endpoints.slices = vec![many(10, 40_000, "ready"), many(11, 60_000, "leaving")];
        let (addresses, draining, _, (limited, said)) = written(&observed);
        assert_eq!((addresses.len(), draining, limited.as_str()), (40_000, 0, "ConfigTooLarge"));
        assert!(said.contains("40 of 40 thousand ready endpoints"), "{said}");
        // Then as many as there is room for are used.
        observed.endpoints.slices = vec![many(10, u16::MAX, "ready"), many(12, 20_000, "ready")];
        let (addresses, _, length, (_, said)) = written(&observed);
        assert!(length > CONFIG_MAX - 64, "{length} bytes, {} endpoints", addresses.len());
        assert!(said.contains(&format!("{} of 85 thousand", addresses.len() / 1000)), "{said}");
        // One that is gone gets no more connections.
        let gone = addresses[0].clone();
        let mut slice = EndpointSlice::clone(&observed.endpoints.slices[0]);
        slice.endpoints.retain(|endpoint| endpoint.address.to_string() != gone);
        observed.endpoints.slices[0] = Arc::new(slice);
        let (addresses, ..) = written(&observed);
        assert!(!addresses.contains(&gone));
    }

    #[test]
    fn config_too_large_is_reported() {
        // Each with a target of its own.
        let mut observed = direct_access();
        observed.service.as_mut().unwrap().ports = (1..=20_000).map(|number| port("TCP", number)).collect();
        let planned = plan(&observed);
        assert_eq!(config_of(&planned), None);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "ConfigTooLarge");
    }

    /// A configuration of two Services at addresses of their own, `web` at a port.
    fn two_services(port: u16, probe: bool) -> GatewayConfig {
        let frontend = |service: &str, address: &str, port: u16| {
            json!({
                "service": service, "addresses": [address], "ports": [{ "protocol": "TCP", "port": port }],
                "target": { "kind": "clusterIp", "addresses": ["10.96.0.1"] },
            })
        };
        let address = |address: &str, probe: bool| json!({ "address": address, "cidr": "172.18.0.0/16", "subnet": "lan", "probe": probe });
        let config = json!({
            "version": 1, "attachment": "kube-system/lan",
            "addresses": [address("172.18.0.11", probe), address("172.18.0.12", false)],
            "frontends": [
                frontend("default/api", "172.18.0.12", 80),
                frontend(SERVICE, "172.18.0.11", port),
            ],
        });
        serde_json::from_value(config).unwrap()
    }

    /// The part of each of the two in that configuration.
    fn parts_of(config: &GatewayConfig) -> [PartDigests; 2] {
        let of = |name: &str| Rendered::of(config.clone(), &ServiceRef::new("default", name)).unwrap().part;
        ["web", "api"].map(of)
    }

    #[test]
    fn change_of_one_service_leaves_the_others_acknowledged() {
        let before = two_services(80, false);
        let mut status = carries_out(&render(&before));
        let acknowledged = |config: &GatewayConfig, status: &GatewayStatus| {
            parts_of(config).map(|part| part.acknowledged_by(status))
        };
        let after = two_services(81, false);
        assert_eq!(acknowledged(&before, &status), [true, true]);
        assert_eq!(acknowledged(&after, &status), [false, true], "before the gateway has it");
        status = carries_out(&render(&after));
        assert_eq!(acknowledged(&after, &status), [true, true]);
        // What one lacks is no matter of the other.
        status.digest = None;
        status.parts.as_mut().unwrap().remove(SERVICE);
        assert_eq!(acknowledged(&after, &status), [false, true]);
        // An earlier gateway says one thing of all.
        let earlier = GatewayStatus { parts: None, ..carries_out(&render(&before)) };
        assert_eq!(acknowledged(&before, &earlier), [true, true]);
        assert_eq!(acknowledged(&after, &earlier), [false, false]);
    }

    #[test]
    fn gateway_that_probed_for_an_address_carries_out_that_it_need_not() {
        let (probing, proven) = (two_services(80, true), two_services(80, false));
        let status = carries_out(&render(&probing));
        assert_eq!(parts_of(&proven).map(|part| part.acknowledged_by(&status)), [true, true]);
        let status = carries_out(&render(&proven));
        assert_eq!(parts_of(&probing).map(|part| part.acknowledged_by(&status)), [false, true]);
    }
}
