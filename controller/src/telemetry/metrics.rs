//! The controller's metrics.

use std::sync::{Arc, Mutex, PoisonError};

use lb_svc_core::observed::PushAnswer;
use lb_svc_crds::reason::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::memory::Memory;
use crate::index::Index;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Addresses {
    subnet: String,
    state: &'static str,
}

/// Counters of what the process did; most gauges are read from the index when
/// asked for, so they cannot drift.
#[derive(Debug, Default)]
pub struct Metrics {
    runs: Family<Outcome, Counter>,
    pushes: Family<Outcome, Counter>,
    nudges: Counter,
    renudges: Counter,
    gates: Family<ReasonLabel, Counter>,
    leader: Gauge,
}

impl Metrics {
    /// Registers the counters, and gauges that read `index`.
    pub fn register(&self, registry: &mut Registry, index: &Arc<Mutex<Index>>) {
        let registry = registry.sub_registry_with_prefix("lb_svc_controller");
        registry.register("reconciles", "Runs of the loop, by how they ended", self.runs.clone());
        registry.register("pushes", "Configurations handed to gateway pods", self.pushes.clone());
        registry.register("nudges", "Gateway pods told of a configuration", self.nudges.clone());
        registry.register(
            "renudges",
            "Gateway pods told again, as they had not read it",
            self.renudges.clone(),
        );
        registry.register("gates", "Pods that passed their readiness gate", self.gates.clone());
        registry.register("leader", "Whether this controller leads", self.leader.clone());
        registry.register_collector(Box::new(Gauges(Arc::clone(index))));
    }

    /// A run ended; with an error of this category, or well.
    pub fn run(&self, error: Option<&'static str>) {
        self.runs.get_or_create(&Outcome { outcome: error.unwrap_or("ok") }).inc();
    }

    /// This controller leads, until the process ends.
    pub fn lead(&self) {
        self.leader.set(1);
    }

    /// A pod's readiness gate was satisfied, for this reason.
    pub fn pass(&self, reason: Reason) {
        self.gates.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// A pod was handed its configuration, and answered so.
    pub fn push(&self, answer: PushAnswer) {
        let outcome = match answer {
            PushAnswer::Taken => "taken",
            PushAnswer::Failed => "failed",
            PushAnswer::Unknown => "unknown",
        };
        self.pushes.get_or_create(&Outcome { outcome }).inc();
    }

    /// A pod was nudged for its configuration, for the `attempt`th time after the
    /// first.
    pub fn nudge(&self, attempt: u32) {
        self.nudges.inc();
        if attempt > 0 {
            self.renudges.inc();
        }
    }
}

#[derive(Debug)]
struct Gauges(Arc<Mutex<Index>>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (claims, waiting, pods, halting, subnets) = {
            let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (
                index.allocator.claims().count(),
                index.services_waiting(),
                index.waiting_backends(),
                index.failed_rollouts(),
                index.subnet_usage(),
            )
        };
        let memory = Memory::now();
        let bytes = |bytes: Option<u64>| usize::try_from(bytes.unwrap_or_default()).unwrap_or(usize::MAX);
        for (name, help, value) in [
            ("memory_bytes", "Resident memory", bytes(memory.map(|memory| memory.used))),
            (
                "memory_limit_bytes",
                "Memory limit of the container, 0 without one",
                bytes(memory.and_then(|memory| memory.limit)),
            ),
            ("claims", "Addresses held", claims),
            ("services_waiting", "Services that wait for an address", waiting),
            ("rollouts_failed", "Gateways that a roll-out for all broke: it goes no further", halting),
            ("pods_waiting", "Pods that wait for nothing but their readiness gate", pods),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let mut family = encoder.encode_descriptor(
            "subnet_addresses",
            "Addresses of a Subnet that Services have, and that they could still get",
            None,
            MetricType::Gauge,
        )?;
        for (subnet, used, free) in subnets {
            for (state, number) in [("used", used), ("free", free)] {
                let gauge = ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
                let labels = Addresses { subnet: subnet.clone(), state };
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_core::model::SubnetStatus;
    use lb_svc_core::testing;
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn leader_and_usage_of_subnets_are_shown() {
        let index = Arc::new(Mutex::new(Index::default()));
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry, &index);
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        let text = shown();
        assert!(text.contains("\nlb_svc_controller_leader 0\n"), "{text}");
        assert!(!text.contains("lb_svc_controller_subnet_addresses{"), "{text}");

        let mut subnet = testing::subnet("10.0.0.0/24");
        subnet.status = SubnetStatus { using: 3, available: 250, ..SubnetStatus::default() };
        index.lock().unwrap().set_subnet("lan", Some(subnet));
        metrics.lead();
        let text = shown();
        for line in [
            "lb_svc_controller_leader 1",
            r#"lb_svc_controller_subnet_addresses{subnet="lan",state="used"} 3"#,
            r#"lb_svc_controller_subnet_addresses{subnet="lan",state="free"} 250"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in {text}");
        }
    }
}
