//! A configuration with the seal on it, as a push or the kept copy of one has it.

use lb_svc_crds::names;
use lb_svc_crds::seal::{PublicKey, Seal, Unsealed};

use super::{Config, Invalid, parse};

/// What a configuration has to be signed by, and for.
#[derive(Clone, Debug, Default)]
pub struct Authority {
    /// The gateway's id.
    pub gateway: String,
    /// The keys, of which one is enough. With none, nothing that is mounted has to be
    /// signed, and nothing can be pushed.
    pub trusted: Vec<PublicKey>,
}

impl Authority {
    /// Reads a seal in `text` that is one of this gateway's.
    ///
    /// # Errors
    /// It is not valid, or another gateway's.
    pub fn open(&self, text: &[u8]) -> Result<Seal, Unsealed> {
        let seal = Seal::open(text, &self.trusted)?;
        if seal.gateway == self.gateway { Ok(seal) } else { Err(Unsealed::OtherGateway(seal.gateway)) }
    }
}

/// A valid configuration that was signed for this gateway.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The configuration.
    pub config: Config,
    /// SHA-256 of its text.
    pub digest: String,
    /// Its generation.
    pub generation: u64,
    /// The seal's text and the configuration's.
    text: (Vec<u8>, Vec<u8>),
}

/// Why there is no such configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not the controller's for this gateway.
    #[error("it is not the controller's for this gateway, {0}")]
    Unsealed(#[from] Unsealed),
    /// It cannot be carried out.
    #[error("it cannot be carried out, {0}")]
    Invalid(#[from] Invalid),
}

impl Sealed {
    /// The configuration `config` with the seal `seal`, both as they are written.
    ///
    /// # Errors
    /// Why it is not admitted.
    pub fn new(authority: &Authority, seal: Vec<u8>, config: Vec<u8>) -> Result<Self, Refused> {
        let opened = authority.open(&seal)?;
        opened.verify(&authority.gateway, |part| (part == names::CONFIG_KEY).then(|| config.clone()))?;
        let digest = names::digest(&config);
        Ok(Self { config: parse(&config)?, digest, generation: opened.generation, text: (seal, config) })
    }

    /// The bytes that [`Self::from_bytes`] reads: the seal, a line feed, the configuration.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (seal, config) = &self.text;
        [seal, &b"\n"[..], config].concat()
    }

    /// Reads the bytes of [`Self::to_bytes`], which need not be any.
    ///
    /// # Errors
    /// Why it is not admitted.
    pub fn from_bytes(authority: &Authority, bytes: &[u8]) -> Result<Self, Refused> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unsealed::Unreadable)?;
        Self::new(authority, bytes[..end].to_vec(), bytes[end + 1..].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use lb_svc_crds::seal::PrivateKey;
    use proptest::prelude::*;

    use super::*;

    const CONFIG: &[u8] = br#"{"version": 1, "attachment": "a/b", "addresses": [], "frontends": []}"#;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32]).unwrap()
    }

    fn authority() -> Authority {
        Authority { gateway: "uid".into(), trusted: vec![key(1).public()] }
    }

    fn seal(config: &[u8]) -> Vec<u8> {
        key(1).sign(&Seal::of_config("uid", 7, config)).into_bytes()
    }

    fn refusal(seal: &[u8], config: &[u8]) -> Refused {
        Sealed::new(&authority(), seal.to_vec(), config.to_vec()).unwrap_err()
    }

    #[test]
    fn configuration_is_admitted_by_its_seal_alone() {
        let sealed = Sealed::new(&authority(), seal(CONFIG), CONFIG.to_vec()).unwrap();
        assert_eq!((sealed.generation, sealed.digest.as_str()), (7, names::digest(CONFIG).as_str()));
        let kept = Sealed::from_bytes(&authority(), &sealed.to_bytes()).unwrap();
        assert_eq!((kept.generation, kept.digest), (sealed.generation, sealed.digest));

        let unsealed = Refused::Unsealed;
        assert_eq!(refusal(b"", CONFIG), unsealed(Unsealed::Unreadable));
        let other = key(2).sign(&Seal::of_config("uid", 7, CONFIG));
        assert_eq!(refusal(other.as_bytes(), CONFIG), unsealed(Unsealed::Untrusted));
        let other = key(1).sign(&Seal::of_config("other", 7, CONFIG));
        assert_eq!(refusal(other.as_bytes(), CONFIG), unsealed(Unsealed::OtherGateway("other".into())));
        let part = || unsealed(Unsealed::Part(names::CONFIG_KEY.into()));
        assert_eq!(refusal(&seal(CONFIG), &CONFIG[1..]), part());
        assert_eq!(refusal(&seal(CONFIG), b""), part());
        let mut more = Seal::of_config("uid", 7, CONFIG);
        more.parts.insert("more.json".into(), names::digest(b""));
        let more = key(1).sign(&more);
        assert_eq!(refusal(more.as_bytes(), CONFIG), unsealed(Unsealed::Part("more.json".into())));
        assert!(matches!(refusal(&seal(b"{"), b"{"), Refused::Invalid(_)), "a later version, say");
        let none = Authority { gateway: "uid".into(), trusted: Vec::new() };
        let refused = Sealed::new(&none, seal(CONFIG), CONFIG.to_vec()).unwrap_err();
        assert_eq!(refused, unsealed(Unsealed::Untrusted), "who trusts no key trusts nobody");
    }

    static GOOD: LazyLock<Vec<u8>> =
        LazyLock::new(|| Sealed::new(&authority(), seal(CONFIG), CONFIG.to_vec()).unwrap().to_bytes());

    proptest! {

        /// Any other byte, one more or one less, in the seal or in the configuration.
        #[test]
        fn mutated_configuration_is_never_admitted(
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            how in 0..3_u8,
        ) {
            let (mut bytes, at) = (GOOD.clone(), place.index(GOOD.len()));
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
            if let Ok(admitted) = Sealed::from_bytes(&authority(), &bytes) {
                // Of the seal's own text, JSON allows for white space and escapes.
                prop_assert_eq!(admitted.digest, names::digest(CONFIG));
                prop_assert_eq!(admitted.generation, 7);
                prop_assert_eq!(&admitted.text.1[..], CONFIG);
            }
        }
    }
}
