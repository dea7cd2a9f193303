//! The seal on a gateway's configuration: what the controller signs, so that a
//! gateway carries out nothing that others wrote.
//!
//! A seal stands beside the configuration, as [`SEAL_KEY`](crate::names::SEAL_KEY)
//! in the same ConfigMap. It names the gateway, a generation that rises with
//! each change, and the digest of every part of the configuration. The signature
//! is Ed25519's (RFC 8032), over the exact bytes of the payload.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::names;

/// The most bytes that a seal has; a longer one is none.
pub const SEAL_MAX: usize = 16 * 1024;

/// What the controller vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seal {
    /// The gateway's id, for a dedicated one the uid of its Service.
    pub gateway: String,
    /// Rises with each configuration of the gateway.
    pub generation: u64,
    /// SHA-256 (hex) of each part of the configuration, by its key in the
    /// ConfigMap.
    pub parts: BTreeMap<String, String>,
}

/// A seal as it is written: the payload is JSON within JSON, so that what is
/// signed are bytes that nobody formats anew.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    payload: String,
    signature: String,
}

/// Why a configuration is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// There is no seal.
    #[error("it has no signature")]
    Missing,
    /// The seal is not one.
    #[error("its signature cannot be read")]
    Unreadable,
    /// The signature is not by a trusted key.
    #[error("its signature is by no key that the gateway trusts")]
    Untrusted,
    /// It is another gateway's.
    #[error("it was signed for gateway {0}")]
    OtherGateway(String),
    /// A part is missing, or another than was signed.
    #[error("{0} is not what was signed")]
    Part(String),
}

impl Seal {
    /// A seal for a configuration of one part.
    pub fn of_config(gateway: &str, generation: u64, config: &[u8]) -> Self {
        let parts = [(names::CONFIG_KEY.to_owned(), names::digest(config))].into();
        Self { gateway: gateway.to_owned(), generation, parts }
    }

    /// Reads the seal in `text`, if one of `trusted` signed it.
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn open(text: &[u8], trusted: &[PublicKey]) -> Result<Self, Unsealed> {
        if text.len() > SEAL_MAX {
            return Err(Unsealed::Unreadable);
        }
        let Signed { payload, signature } = serde_json::from_slice(text).map_err(|_| Unsealed::Unreadable)?;
        let signature = bytes(&signature).ok_or(Unsealed::Unreadable)?;
        let signature = Signature::from_bytes(&signature);
        let is_by = |key: &PublicKey| key.0.verify_strict(payload.as_bytes(), &signature).is_ok();
        if !trusted.iter().any(is_by) {
            return Err(Unsealed::Untrusted);
        }
        serde_json::from_str(&payload).map_err(|_| Unsealed::Unreadable)
    }

    /// Checks that the seal is `gateway`'s, covers the configuration, and that every
    /// part that it names is as it was signed; `read` gives a part's content.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(
        &self,
        gateway: &str,
        mut read: impl FnMut(&str) -> Option<Vec<u8>>,
    ) -> Result<(), Unsealed> {
        if self.gateway != gateway {
            return Err(Unsealed::OtherGateway(self.gateway.clone()));
        }
        if !self.parts.contains_key(names::CONFIG_KEY) {
            return Err(Unsealed::Part(names::CONFIG_KEY.to_owned()));
        }
        let differs = |(part, digest): &(&String, &String)| {
            read(part).map(|content| names::digest(&content)).as_ref() != Some(*digest)
        };
        match self.parts.iter().find(differs) {
            Some((part, _)) => Err(Unsealed::Part(part.clone())),
            None => Ok(()),
        }
    }
}

/// The controller's key.
#[derive(Clone)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// The key of a seed of 32 bytes; `None` if it has another length.
    pub fn from_seed(seed: &[u8]) -> Option<Self> {
        seed.try_into().ok().map(|seed| Self(SigningKey::from_bytes(seed)))
    }

    /// The key that gateways check its signatures by.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a seal, as it is written.
    pub fn sign(&self, seal: &Seal) -> String {
        // Serialising plain structs of strings and numbers cannot fail.
        let payload = serde_json::to_string(seal).unwrap_or_default();
        let signature = hex(&self.0.sign(payload.as_bytes()).to_bytes());
        serde_json::to_string(&Signed { payload, signature }).unwrap_or_default()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey of {}", self.public())
    }
}

/// A key that signatures are checked by; its text is 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = bytes(text).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
        key.map(Self).ok_or_else(|| format!("{text:?} is no Ed25519 public key of 64 hexadecimal digits"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn public_key_is_rfc_8032s() {
        // RFC 8032, section 7.1, test 1.
        let seed: [u8; 32] =
            bytes("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(PrivateKey::from_seed(&seed).unwrap().public().to_string(), public);
        assert_eq!(public.parse::<PublicKey>().unwrap(), PrivateKey::from_seed(&seed).unwrap().public());
        assert!(PrivateKey::from_seed(&seed[1..]).is_none() && public[2..].parse::<PublicKey>().is_err());
    }

    #[test]
    fn r10_seal_is_valid_by_a_trusted_key_only() {
        let seal = Seal::of_config("uid", 7, b"{}");
        let text = key(1).sign(&seal);
        let open = |keys: &[u8]| {
            let trusted: Vec<PublicKey> = keys.iter().map(|seed| key(*seed).public()).collect();
            Seal::open(text.as_bytes(), &trusted)
        };
        assert_eq!(open(&[1]), Ok(seal.clone()));
        assert_eq!(open(&[2, 1]), Ok(seal), "while one key is replaced by another");
        assert_eq!(open(&[2]), Err(Unsealed::Untrusted));
        assert_eq!(open(&[]), Err(Unsealed::Untrusted));
        let public = [key(1).public()];
        for part in [text.replace('7', "8"), text.replace("uid", "uie")] {
            assert_eq!(Seal::open(part.as_bytes(), &public), Err(Unsealed::Untrusted));
        }
        for text in ["", "{}", "[", r#"{"payload":"{}","signature":"é0"}"#] {
            assert_eq!(Seal::open(text.as_bytes(), &public), Err(Unsealed::Unreadable));
        }
        assert_eq!(Seal::open(&[b' '; SEAL_MAX + 1], &public), Err(Unsealed::Unreadable));
    }

    #[test]
    fn r10_seal_covers_its_gateway_and_every_part() {
        let mut seal = Seal::of_config("uid", 7, b"{}");
        let read =
            |content: &'static [u8]| move |part: &str| (part == names::CONFIG_KEY).then(|| content.to_vec());
        assert_eq!(seal.verify("uid", read(b"{}")), Ok(()));
        assert_eq!(seal.verify("other", read(b"{}")), Err(Unsealed::OtherGateway("uid".into())));
        assert_eq!(seal.verify("uid", read(b"{} ")), Err(Unsealed::Part(names::CONFIG_KEY.into())));
        seal.parts.insert("more.json".into(), names::digest(b""));
        assert_eq!(
            seal.verify("uid", read(b"{}")),
            Err(Unsealed::Part("more.json".into())),
            "a part is missing"
        );
        seal.parts = BTreeMap::new();
        assert_eq!(seal.verify("uid", read(b"{}")), Err(Unsealed::Part(names::CONFIG_KEY.into())));
    }
}
