//! Messages about neighbours.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use crate::route::model::Neighbour;

/// The address of a neighbour and its hardware address.
pub fn neighbour(message: &NeighbourMessage) -> Option<(Ipv4Addr, [u8; 6])> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((address?, mac?))
}

/// Whether the kernel would ask the neighbour again before it relies on it.
pub fn is_in_doubt(message: &NeighbourMessage) -> bool {
    matches!(message.header.state, NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe)
}

/// A neighbour, if it is permanent.
pub fn permanent_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (address, mac) = neighbour(message)?;
    let is_permanent = message.header.state == NeighbourState::Permanent;
    is_permanent.then_some(Neighbour { interface: message.header.ifindex, address, mac })
}

/// The message that names a permanent neighbour.
pub fn neighbour_message(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = neighbour.interface;
    message.header.state = NeighbourState::Permanent;
    let address = NeighbourAddress::Inet(neighbour.address);
    let mac = NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec());
    message.attributes = vec![NeighbourAttribute::Destination(address), mac];
    message
}
