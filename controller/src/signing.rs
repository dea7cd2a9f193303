//! The keys that gateways' configurations are signed with.

use std::collections::BTreeMap;

use lb_svc_crds::names;
use lb_svc_crds::seal::{PrivateKey, PublicKey, Seal};

/// What a private key is made from: 32 random bytes.
pub struct Seed([u8; 32]);

impl Seed {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(bytes))
    }

    /// To be kept.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The key that signs, and the public keys that gateways trust.
#[derive(Clone, Debug)]
pub struct SigningKeys {
    current: PrivateKey,
    next: Option<PublicKey>,
}

impl SigningKeys {
    /// The keys of one seed.
    pub fn of(Seed(seed): &Seed) -> Self {
        // A seed has the length of one.
        Self { current: PrivateKey::from_seed(seed).expect("32 bytes"), next: None }
    }

    /// The keys that were kept, as the Secret [`names::SIGNING_SECRET`] has them;
    /// `None` if a seed is not of 32 bytes, or that of the current key is missing.
    pub fn kept<T: AsRef<[u8]>>(data: &BTreeMap<String, T>) -> Option<Self> {
        let current = PrivateKey::from_seed(data.get(names::SIGNING_KEY)?.as_ref())?;
        let next = match data.get(names::NEXT_SIGNING_KEY) {
            Some(seed) => Some(PrivateKey::from_seed(seed.as_ref())?.public()),
            None => None,
        };
        Some(Self { current, next })
    }

    /// The public keys that gateways are to trust: the one that signs, and the one
    /// that is to sign next.
    pub fn trusted(&self) -> Vec<PublicKey> {
        [self.current.public()].into_iter().chain(self.next).collect()
    }

    /// The seal on a configuration.
    pub fn seal(&self, gateway: &str, generation: u64, config: &[u8]) -> String {
        self.current.sign(&Seal::of_config(gateway, generation, config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_key_is_trusted_before_it_signs() {
        let seeds = |seeds: &[(&str, u8)]| -> BTreeMap<String, Vec<u8>> {
            seeds.iter().map(|(key, seed)| ((*key).to_owned(), vec![*seed; 32])).collect()
        };
        let (now, then) = (
            seeds(&[(names::SIGNING_KEY, 1), (names::NEXT_SIGNING_KEY, 2)]),
            seeds(&[(names::SIGNING_KEY, 2)]),
        );
        let (now, then) = (SigningKeys::kept(&now).unwrap(), SigningKeys::kept(&then).unwrap());
        for keys in [&now, &then] {
            let text = keys.seal("uid", 1, b"{}");
            assert!(Seal::open(text.as_bytes(), &now.trusted()).is_ok());
        }
        assert!(Seal::open(now.seal("uid", 1, b"{}").as_bytes(), &then.trusted()).is_err());
        assert!(SigningKeys::kept(&seeds(&[(names::NEXT_SIGNING_KEY, 1)])).is_none());
        let short: BTreeMap<String, Vec<u8>> = [(names::SIGNING_KEY.to_owned(), vec![1; 31])].into();
        assert!(SigningKeys::kept(&short).is_none());
    }
}
