//! Policy routing: the gateway's routing table, and the rules that select it.
//!
//! ```text
//!   32760  to the next pod         lookup 100    only with several pods
//!   32761  from all fwmark <mark>  lookup 32761  only with proxied ports
//!   32762  from all iif <LAN>      lookup main   only with endpoint targets; where the
//!                                                LAN has routes in main: lookup 32762
//!   32763  from <each address>     lookup 100
//!   32764  from all iif <primary>  lookup 100
//!   32765  from all iif <LAN>      lookup 100
//!   32766  from all                lookup main   the pod's own
//! ```

/// The routing table that is the gateway's alone.
pub const GATEWAY: u32 = 100;
/// The gateway's copy of those routes of the pod's own table that do not lead to the LAN.
/// The LAN's IPAM may have made routes there, which must not lead to endpoints: they may
/// be nodes, with addresses of the same network. As [`PRIORITY_ENDPOINTS`].
pub const ENDPOINTS: u32 = 32762;
/// Delivers every packet to the pod itself. As [`PRIORITY_PROXY`].
pub const PROXY: u32 = 32761;
/// The pod's own routing table (`RT_TABLE_MAIN`).
pub const MAIN: u32 = 254;

/// [Strays](crate::datapath::strays) that are handed on.
pub const PRIORITY_NEXT_POD: u32 = 32760;
/// Packets of proxied connections, by their mark: to the pod itself, whether it has their
/// address or had it.
pub const PRIORITY_PROXY: u32 = 32761;
/// Packets from the LAN that are forwarded to endpoints, whose next hops the pod's
/// own table has.
pub const PRIORITY_ENDPOINTS: u32 = 32762;
/// Packets that the pod itself sends from one of the addresses; before the rules
/// by interface.
pub const PRIORITY_OWN_ADDRESS: u32 = 32763;
/// Packets from the cluster.
pub const PRIORITY_PRIMARY: u32 = 32764;
/// Packets from the LAN.
pub const PRIORITY_LAN: u32 = 32765;
