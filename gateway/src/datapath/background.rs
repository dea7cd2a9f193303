//! Best-effort nftables tables, programmed by a task in the background.
//!
//! Programming them takes nft its time, in which the agent has addresses to
//! announce. If the kernel lacks what one of them needs, everything else is served
//! all the same.

use tokio::sync::watch;

use super::Trust;
use super::nft::log_once::LogOnce;
use super::nft::table::{Before, Change, Table};
use super::nft::transaction::{self, Error};

/// What the tables are programmed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired<T> {
    /// What they depend on.
    pub input: T,
    /// Increased each time that the kernel's tables may not be as applied.
    pub suspicion: u64,
}

impl<T: PartialEq> Desired<T> {
    /// Sets the input, and with `suspect` that the kernel's tables may not be as applied.
    /// Returns whether there is anything to do.
    pub fn set(&mut self, input: T, suspect: bool) -> bool {
        let changed = suspect || self.input != input;
        self.input = input;
        self.suspicion += u64::from(suspect);
        changed
    }
}

/// One of these tables.
pub struct BackgroundTable<T> {
    /// Its name, `<family> <name>`.
    pub name: &'static str,
    /// The consequence if it cannot be programmed, for the log.
    pub consequence: &'static str,
    /// Makes the script that turns the table as it is into the desired one.
    pub script: fn(&T, &Before<'_, T>) -> String,
}

/// Keeps the tables as desired, until the sender of `desired` is dropped.
pub async fn maintain<T: Clone + PartialEq>(
    mut desired: watch::Receiver<Desired<T>>,
    tables: impl IntoIterator<Item = BackgroundTable<T>>,
) {
    let mut tables: Vec<Maintained<T>> = tables.into_iter().map(Maintained::new).collect();
    let mut suspicion = 0;
    while desired.changed().await.is_ok() {
        let now = desired.borrow_and_update().clone();
        let suspect = std::mem::replace(&mut suspicion, now.suspicion) != now.suspicion;
        let trust = if suspect { Trust::Unverified } else { Trust::AsApplied };
        let mut changes = Vec::new();
        for table in &mut tables {
            let change = table.change(&now.input, trust).await;
            changes.extend(change.map(|change| (table, change)));
        }
        // All in one transaction: each wakes the agent, which then looks for
        // drift. If the kernel refuses it, each table is tried alone.
        let together: String = changes.iter().map(|(_, change)| change.script.as_str()).collect();
        let generation = if changes.len() > 1 { transaction::run(&together).await.ok() } else { None };
        for (table, change) in changes {
            let run = match generation {
                Some(generation) => Ok(generation),
                None => transaction::run(&change.script).await,
            };
            table.applied(change, run).await;
        }
    }
}

struct Maintained<T> {
    spec: BackgroundTable<T>,
    table: Table<T>,
    failure: LogOnce,
}

impl<T: Clone + PartialEq> Maintained<T> {
    fn new(spec: BackgroundTable<T>) -> Self {
        Self { table: Table::new(spec.name), spec, failure: LogOnce::default() }
    }

    async fn change(&mut self, input: &T, trust: Trust) -> Option<Change<T>> {
        let make = |before: Before<'_, T>| (self.spec.script)(input, &before);
        match self.table.change(input.clone(), trust, make).await {
            Ok(change) => change,
            Err(error) => {
                self.failure.log(self.spec.consequence, Some(&error));
                None
            }
        }
    }

    async fn applied(&mut self, change: Change<T>, run: Result<u32, Error>) {
        let read_back = match run {
            Ok(generation) => {
                self.table.applied(change, generation);
                self.table.read_back().await
            }
            Err(error) => Err(error),
        };
        self.failure.log(self.spec.consequence, read_back.err().as_ref());
    }
}
