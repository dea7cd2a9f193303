//! The keys that configurations are signed with: those that are there, or new
//! ones.

use super::client::{ApiServer, Error};
use crate::signing::{Seed, SigningKeys};

impl ApiServer {
    /// The keys in the Secret in `namespace`, which is made if there is none.
    ///
    /// # Errors
    /// It can neither be read nor made, or holds no keys.
    pub async fn signing_keys(&self, namespace: &str) -> Result<SigningKeys, Error> {
        if let Some(keys) = self.read_signing_keys(namespace).await? {
            return Ok(keys);
        }
        let seed = Seed::random()?;
        match self.write_signing_key(namespace, &seed).await {
            Ok(()) => {
                tracing::warn!("signing key made: gateways that trust another are replaced, a few at a time");
                Ok(SigningKeys::of(&seed))
            }
            // Another controller was first.
            Err(conflict) if conflict.is_conflict() => {
                self.read_signing_keys(namespace).await?.ok_or(conflict)
            }
            Err(error) => Err(error),
        }
    }
}
