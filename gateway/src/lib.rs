//! The gateway: owns LoadBalancer addresses on a pod's second interface and forwards
//! what they serve, to ClusterIPs or to endpoints.
//!
//! Its configuration is mounted as files; it has no credentials and does not use the
//! API server. It makes the kernel's state what the configuration asks for, and keeps
//! it so. That state outlives the process: a gateway that starts takes over what it
//! finds.
//!
//! ```text
//!   mounted files ─▶ config ─┐                         ┌─▶ datapath ─▶ netfilter
//!   kernel ─▶ route, link ───┼─▶ agent: desired state ─┼─▶ route ────▶ addresses, rules, …
//!   podnet: checks ──────────┘           │             └─▶ announce ─▶ l2 ─▶ LAN
//!                                        └─▶ telemetry: status, metrics
//! ```
//!
//! | Room | Holds |
//! |---|---|
//! | [`agent`] | the loop, and the steps of a run |
//! | [`config`] | the configuration as values |
//! | [`link`] | the pod's interfaces by role |
//! | [`route`] | addresses, routes and rules: desired, observed, planned, changed |
//! | [`datapath`] | netfilter: filter, source ranges, NAT, counters, conntrack |
//! | [`proxy`] | connections with the PROXY protocol, relayed by this process |
//! | [`announce`] | which pod has the addresses, and how the LAN learns it |
//! | [`l2`] | ARP frames and packet sockets |
//! | [`podnet`] | checks of next hop, ClusterIPs and endpoints |
//! | [`telemetry`] | metrics and the HTTP server |
//!
//! Beside them: [`cli`] (flags), [`fault`] (every cause that keeps a gateway from
//! serving), [`limit`] (what is served less well), [`capabilities`], [`scheduling`] and [`off_loop`]. The election's rules are
//! a crate of their own, [`lb_svc_election`].
//!
//! # Threads
//!
//! ```text
//!   main       agent, programs, HTTP, checks        ◀── watch ──▶  election   one member
//!   proxy      accepts and relays proxied connections, where there are any
//!   netlink    requests of the network state                       (its sockets and timers)
//!   blocking   scrapes, walks of the connection table
//!   log        writes to stderr
//! ```
//!
//! The election has a thread of its own, on which nothing else runs: whatever holds the
//! others up costs no lease. If the agent's loop stands still for long, the member
//! resigns ([`announce::layer2::watchdog`]).

pub mod agent;
pub mod announce;
pub mod capabilities;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod fault;
pub mod l2;
pub mod limit;
pub mod link;
pub mod off_loop;
pub mod podnet;
pub mod proxy;
pub mod route;
pub mod scheduling;
pub mod telemetry;
