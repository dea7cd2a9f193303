//! The keys by which the pods of one gateway know one another in their
//! election.
//!
//! Each is derived from one master key and the gateway's name in the election,
//! so that a lost one can be made again: pods with another would not hear
//! those that run.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What every gateway's key is derived from: 32 random bytes.
#[derive(Clone)]
pub struct Master([u8; 32]);

impl Master {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(bytes))
    }

    /// The one that was kept; `None` if these are not 32 bytes.
    pub fn kept(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be kept.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of a gateway: HMAC-SHA256 (RFC 2104) of its name in the
    /// election, see [`lb_svc_crds::gateway::Election::gateway`].
    pub fn key(&self, gateway: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(gateway.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_stable_and_unique_per_gateway() {
        let master = Master::kept(&[1; 32]).unwrap();
        let key = master.key("uid-1");
        assert_eq!(Master::kept(master.bytes()).unwrap().key("uid-1"), key);
        assert_ne!(master.key("uid-2"), key);
        assert_ne!(Master::random().unwrap().key("uid-1"), key);
        assert!(Master::kept(&[1; 31]).is_none());
    }

    #[test]
    fn key_is_hmac_sha256() {
        // printf uid-1 | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101…
        let expected = "f4f92dbe055bbdc3172e8ead99b4167f3047a372e21fd60e792962108607a175";
        let key = Master::kept(&[1; 32]).unwrap().key("uid-1");
        assert_eq!(key.map(|byte| format!("{byte:02x}")).concat(), expected);
    }
}
