//! The key that all keys of elections are derived from: the one that is there,
//! that was there before, or a new one.

use super::client::{ApiServer, Error};
use crate::election_key::Master;

/// Where a master key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its Secret has it.
    Kept,
    /// Its Secret was gone, and was made again with what it had.
    Restored,
    /// It is another than before, or nobody knows what was before.
    New,
}

impl ApiServer {
    /// The key in the Secret in `namespace`. If there is none, that is made, with
    /// the `known` key if there was one.
    ///
    /// # Errors
    /// It can neither be read nor made, or is no key.
    pub async fn master(&self, namespace: &str, known: Option<&Master>) -> Result<(Master, Origin), Error> {
        let is_other = |found: &Master| known.is_some_and(|known| known.bytes() != found.bytes());
        let found = |found: Master| {
            let origin = if is_other(&found) { Origin::New } else { Origin::Kept };
            (found, origin)
        };
        if let Some(master) = self.read_master(namespace).await? {
            return Ok(found(master));
        }
        let (master, origin) = match known {
            Some(known) => (known.clone(), Origin::Restored),
            None => (Master::random()?, Origin::New),
        };
        match self.write_master(namespace, &master).await {
            Ok(()) => Ok((master, origin)),
            // Another controller was first.
            Err(conflict) if conflict.is_conflict() => {
                self.read_master(namespace).await?.map(found).ok_or(conflict)
            }
            Err(error) => Err(error),
        }
    }
}
