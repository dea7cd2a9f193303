//! The gateway: owns LoadBalancer addresses on a pod's second interface and
//! forwards what they serve, to ClusterIPs or to endpoints.
//!
//! What it is to do comes as mounted files ([`config`], [`interfaces`]); it
//! holds no credentials. From them and the pod's own routes [`desired`] says
//! what the kernel is to hold, [`plan`] compares that with what it does hold
//! ([`kernel`]), and [`netlink`], [`nat`], [`filter`], [`ranges`] and
//! [`conntrack`] carry it out; beside it ([`aside`]) [`timeouts`] has the kernel
//! forget connections in time, [`traffic`] has it count them, and [`sources`]
//! sees to it that there are source ports for more.
//! [`watch`] says when to look again, [`probe`] asks the LAN and [`arp`] tells it,
//! [`path`] and [`health`] ask the cluster, [`http`] tells the cluster, and [`run`] is the
//! loop around it all. Where a gateway has several pods, [`lb_svc_election`] says which
//! one of them is active, [`member`] takes part in it, [`pulse`] and [`reach`]
//! say whether the pod is fit to, [`lease`] has the kernel hold them to it, and
//! [`turns`] has it let them in soon.
//! The kernel's state outlives the process: a gateway that starts takes over
//! what it finds.

pub mod arp;
pub mod aside;
pub mod caps;
pub mod config;
pub mod conntrack;
pub mod desired;
pub mod fault;
pub mod filter;
pub mod health;
pub mod http;
pub mod interfaces;
pub mod kernel;
pub mod lease;
pub mod member;
pub mod metrics;
pub mod nat;
pub mod netlink;
pub mod nfnetlink;
pub mod nft;
pub mod path;
pub mod plan;
pub mod probe;
pub mod pulse;
pub mod ranges;
pub mod reach;
pub mod run;
pub mod sources;
pub mod timeouts;
pub mod tool;
pub mod traffic;
pub mod turns;
pub mod watch;
