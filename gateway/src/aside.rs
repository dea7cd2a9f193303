//! nftables tables that nobody waits for: they are programmed after all else,
//! beside the loop, for that takes programs their time, and there are addresses
//! to be announced meanwhile. Where the kernel lacks what one of them takes,
//! what is served is served all the same.

use tokio::sync::watch as cell;

use crate::config::Services;
use crate::nft::{self, Before, Change, Error, Table, Told};

/// What they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is served.
    pub services: Services,
    /// Another each time that the kernel may not hold what was left there.
    pub suspicion: u64,
}

/// One of these tables.
pub struct Part {
    /// Its name, `<family> <name>`.
    pub name: &'static str,
    /// What is so while it cannot be programmed.
    pub lacking: &'static str,
    /// Makes it of what is served, and of what it was.
    pub script: fn(&Services, &Before<'_, Services>) -> String,
}

/// Keeps the tables as they are to be for what is `wanted`, for as long as
/// somebody wants.
pub async fn keep(mut wanted: cell::Receiver<Wanted>, parts: impl IntoIterator<Item = Part>) {
    let mut kept: Vec<Kept> = parts.into_iter().map(Kept::new).collect();
    let mut suspicion = 0;
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        let suspect = std::mem::replace(&mut suspicion, now.suspicion) != now.suspicion;
        let mut changes = Vec::new();
        for kept in &mut kept {
            let change = kept.change(&now.services, suspect).await;
            changes.extend(change.map(|change| (kept, change)));
        }
        // At one go: every transaction wakes the loop, which has to look whose
        // it was. If the kernel refuses, each has its own chance.
        let together: String = changes.iter().map(|(_, change)| change.script.as_str()).collect();
        let by = if changes.len() > 1 { nft::run(&together).await.ok() } else { None };
        for (kept, change) in changes {
            let made = match by {
                Some(by) => Ok(by),
                None => nft::run(&change.script).await,
            };
            kept.made(change, made).await;
        }
    }
}

struct Kept {
    part: Part,
    table: Table<Services>,
    told: Told,
}

impl Kept {
    fn new(part: Part) -> Self {
        Self { table: Table::new(part.name), part, told: Told::default() }
    }

    async fn change(&mut self, services: &Services, suspect: bool) -> Option<Change<Services>> {
        let make = |before: Before<'_, Services>| (self.part.script)(services, &before);
        let change = self.table.change(services.clone(), suspect, make).await;
        match change {
            Ok(change) => change,
            Err(error) => {
                self.told.tell(self.part.lacking, Some(error));
                None
            }
        }
    }

    async fn made(&mut self, change: Change<Services>, by: Result<u32, Error>) {
        let settled = match by {
            Ok(by) => {
                self.table.made(change, by);
                self.table.settle().await
            }
            Err(error) => Err(error),
        };
        self.told.tell(self.part.lacking, settled.err());
    }
}
