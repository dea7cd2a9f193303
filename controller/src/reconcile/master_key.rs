//! The Secret with the key that all keys of elections are derived from.

use std::time::Duration;

use lb_svc_crds::names::MASTER_SECRET;

use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::api_server::master_key::Origin;
use crate::election_key::Master;

/// How often the Secret is looked for.
const LOOK: Duration = Duration::from_secs(60);

impl Reconciler {
    /// The key that all keys of elections are derived from.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn master(&self) -> Result<Master, Error> {
        let known = lock(&self.keys.master).clone();
        let (master, origin) = self.api_server.master(&self.keys.namespace, known.as_ref()).await?;
        *lock(&self.keys.master) = Some(master.clone());
        let keyed = lock(&self.index).keyed_gateways();
        if let Some(warning) = warning(origin, keyed) {
            tracing::warn!(
                namespace = self.keys.namespace,
                secret = MASTER_SECRET,
                gateways = keyed,
                "{warning}"
            );
        }
        Ok(master)
    }

    /// Looks for the Secret as long as the controller leads, from the beginning:
    /// while the key is remembered, a Secret that was deleted is made again.
    pub async fn keep_master(&self) {
        loop {
            let is_used = lock(&self.keys.master).is_some() || lock(&self.index).keyed_gateways() > 0;
            if is_used && let Err(error) = self.master().await {
                tracing::warn!(secret = MASTER_SECRET, %error, "the keys of elections are not looked after");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is said of a master key, with so many gateways that have keys.
fn warning(origin: Origin, keyed: usize) -> Option<&'static str> {
    match origin {
        Origin::Restored => Some("the Secret was deleted, and is made again with the same key"),
        Origin::New if keyed > 0 => Some(
            "the master key is another while gateways with keys of an earlier one exist: one that loses its Secret gets a key that its pods do not have; restore the Secret from a backup, or replace the gateways' keys",
        ),
        Origin::New | Origin::Kept => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r52_new_master_key_is_warned_of_while_gateways_have_keys() {
        assert_eq!(warning(Origin::New, 0), None);
        assert!(warning(Origin::New, 3).unwrap().contains("replace the gateways' keys"));
        assert!(warning(Origin::Restored, 0).is_some());
        assert_eq!(warning(Origin::Kept, 3), None);
    }
}
