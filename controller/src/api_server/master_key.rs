//! The key that all keys of elections are derived from: the one that is there,
//! or a new one.

use super::client::{ApiServer, Error};
use crate::election_key::Master;

impl ApiServer {
    /// The key in the Secret in `namespace`, which is made if there is none.
    ///
    /// # Errors
    /// It can neither be read nor made, or is no key.
    pub async fn master(&self, namespace: &str) -> Result<Master, Error> {
        if let Some(master) = self.read_master(namespace).await? {
            return Ok(master);
        }
        let master = Master::random()?;
        match self.write_master(namespace, &master).await {
            Ok(()) => Ok(master),
            // Another controller was first.
            Err(conflict) if conflict.is_conflict() => self.read_master(namespace).await?.ok_or(conflict),
            Err(error) => Err(error),
        }
    }
}
