//! The header of the PROXY protocol, version 2 (HAProxy, `proxy-protocol.txt`, 2.2).

use std::net::SocketAddrV4;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: the connection is for another.
const PROXY: u8 = 0x21;
/// Version 2, command LOCAL: the connection is the sender's own.
const LOCAL_COMMAND: u8 = 0x20;
/// `AF_INET`, `STREAM`.
const TCP_OVER_IPV4: u8 = 0x11;
/// Two addresses and two ports.
const LENGTH: u16 = 12;

/// The header of connections that are the gateway's own: its health checks.
pub const LOCAL: [u8; 16] = {
    let mut header = [0; 16];
    let mut at = 0;
    while at < SIGNATURE.len() {
        header[at] = SIGNATURE[at];
        at += 1;
    }
    header[12] = LOCAL_COMMAND;
    header
};

/// The header of a connection that `client` opened to `frontend`.
pub fn proxy(client: SocketAddrV4, frontend: SocketAddrV4) -> [u8; 28] {
    let mut header = [0; 28];
    header[..12].copy_from_slice(&SIGNATURE);
    header[12] = PROXY;
    header[13] = TCP_OVER_IPV4;
    header[14..16].copy_from_slice(&LENGTH.to_be_bytes());
    header[16..20].copy_from_slice(&client.ip().octets());
    header[20..24].copy_from_slice(&frontend.ip().octets());
    header[24..26].copy_from_slice(&client.port().to_be_bytes());
    header[26..].copy_from_slice(&frontend.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_specification() {
        let header = proxy("192.0.2.7:51234".parse().unwrap(), "172.18.0.18:443".parse().unwrap());
        let expected = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // the signature
            0x21, 0x11, 0x00, 0x0c, // version and command, family, length
            192, 0, 2, 7, 172, 18, 0, 18, 0xc8, 0x22, 0x01, 0xbb,
        ];
        assert_eq!(header, expected);
        assert_eq!(LOCAL[..12], expected[..12]);
        assert_eq!(LOCAL[12..], [0x20, 0x00, 0x00, 0x00], "without addresses");
    }
}
