//! The controller's metrics.

use std::sync::{Arc, Mutex, PoisonError};

use lb_svc_crds::reason::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
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

/// Counters of what the process did; gauges are read from the index when
/// asked for, so they cannot drift.
#[derive(Debug, Default)]
pub struct Metrics {
    runs: Family<Outcome, Counter>,
    nudges: Counter,
    renudges: Counter,
    gates: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// Registers the counters, and gauges that read `index`.
    pub fn register(&self, registry: &mut Registry, index: &Arc<Mutex<Index>>) {
        let registry = registry.sub_registry_with_prefix("lb_svc_controller");
        registry.register("reconciles", "Runs of the loop, by how they ended", self.runs.clone());
        registry.register("nudges", "Gateway pods told of a configuration", self.nudges.clone());
        registry.register(
            "renudges",
            "Gateway pods told again, as they had not read it",
            self.renudges.clone(),
        );
        registry.register("gates", "Pods that passed their readiness gate", self.gates.clone());
        registry.register_collector(Box::new(Gauges(Arc::clone(index))));
    }

    /// A run ended; with an error of this category, or well.
    pub fn run(&self, error: Option<&'static str>) {
        self.runs.get_or_create(&Outcome { outcome: error.unwrap_or("ok") }).inc();
    }

    /// A pod's readiness gate was satisfied, for this reason.
    pub fn pass(&self, reason: Reason) {
        self.gates.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
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
        let (claims, waiting, pods, halting) = {
            let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (
                index.allocator.claims().count(),
                index.services_waiting(),
                index.waiting_backends(),
                index.failed_rollouts(),
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
        Ok(())
    }
}
