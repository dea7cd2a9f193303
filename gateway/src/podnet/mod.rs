//! Whether what lies on the side of the pod network works: checks that run in the
//! background, and what their results mean.
//!
//! ```text
//!   pod ──(next_hop)──▶ next hop ──▶ cluster ──(cluster_ip)──▶ ClusterIP
//!                                       └─────(health_check)──▶ endpoint
//! ```
//!
//! | File | Checks |
//! |---|---|
//! | [`next_hop`] | the next hop answers ARP |
//! | [`cluster_ip`] | ClusterIPs work for forwarded packets |
//! | [`health_check`] | endpoints accept connections, or answer HTTP |

pub mod cluster_ip;
pub mod health_check;
pub mod next_hop;
