//! Services at the nodes' own addresses, without a gateway.
//!
//! kube-proxy serves every address in a Service's `status.loadBalancer.ingress`
//! on every node, whoever has the address. So with addresses of nodes there the
//! nodes are the load balancer, and there is no pod. It also serves a wrong
//! address: then the node's own port is cut off at once. Therefore
//!
//! - the configuration says who may ask ([`ports::NodePermissions`]), and ports that
//!   nodes need themselves are never served;
//! - a port is claimed before it is published ([`claim`]), and nodes where a pod
//!   publishes it are left out;
//! - addresses are taken from Node objects alone ([`nodes`]), and written only for
//!   the Service that was judged, in that version.
//!
//! ```text
//!  request ──▶ nodes ──▶ claims ──▶ plan
//! ```

pub mod claim;
pub mod nodes;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod request;
