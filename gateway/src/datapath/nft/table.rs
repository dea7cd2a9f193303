//! A table of our own, and what is known about it.
//!
//! ```text
//!              apply                read back, same generation
//!   Unknown ──────────▶ Applied ─────────────────────────────▶ Verified
//!      ▲                   │                                      │
//!      └───────────────────┴── another transaction in between, ◀──┘
//!                              or a failure
//! ```
//!
//! Drift is noticed without parsing: a verified table is compared by its
//! fingerprint.

use super::dump::{self, Contents};
use super::transaction::{Error, generation, run};
use crate::datapath::Trust;

/// A table before it is changed.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a, T> {
    /// As it was applied for this desired state.
    AsApplied(&'a T),
    /// As it was found: empty, of another process, or changed by others.
    AsFound(&'a Contents),
}

impl<T> Before<'_, T> {
    /// The script that removes the table, if there is one; `is_none` tells whether there
    /// was none for a desired state.
    pub fn removal(&self, table: &str, is_none: impl Fn(&T) -> bool) -> String {
        let is_gone = match self {
            Self::AsApplied(before) => is_none(before),
            Self::AsFound(contents) => contents.is_empty(),
        };
        if is_gone { String::new() } else { format!("delete table {table}\n") }
    }
}

/// A table of ours.
pub struct Table<T> {
    name: &'static str,
    known: Known<T>,
}

/// What is known about a table in the kernel.
enum Known<T> {
    /// Nothing.
    Unknown,
    /// It was applied for this desired state, as this generation, and not read
    /// back yet.
    Applied(T, u32),
    /// It was applied for this desired state, and then had these contents.
    Verified(T, Contents),
}

/// A change to run.
#[derive(Debug)]
pub struct Change<T> {
    desired: T,
    /// For [`run`].
    pub script: String,
}

impl<T: PartialEq> Table<T> {
    /// The table of this name, `<family> <name>`.
    pub fn new(name: &'static str) -> Self {
        Self { name, known: Known::Unknown }
    }

    /// Programs the table and reads it back. `script` makes the nft script that
    /// turns the table as it is into the desired one; an empty script changes
    /// nothing. Returns whether one was run.
    ///
    /// # Errors
    /// If nft or the kernel refuses; nothing is changed then.
    pub async fn ensure(
        &mut self,
        desired: T,
        trust: Trust,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<bool, Error> {
        let changed = self.apply(desired, trust, script).await?;
        self.read_back().await?;
        Ok(changed)
    }

    /// Programs the table without reading it back; [`Self::read_back`] makes up
    /// for that.
    ///
    /// # Errors
    /// As of [`Self::ensure`].
    pub async fn apply(
        &mut self,
        desired: T,
        trust: Trust,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<bool, Error> {
        let Some(change) = self.change(desired, trust, script).await? else { return Ok(false) };
        let generation = run(&change.script).await?;
        self.applied(change, generation);
        Ok(true)
    }

    /// Returns the change that [`Self::apply`] would run, if any. Until
    /// [`Self::applied`] is called, the table counts as unknown.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn change(
        &mut self,
        desired: T,
        trust: Trust,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<Option<Change<T>>, Error> {
        self.read_back().await?;
        let (before, contents) = match std::mem::replace(&mut self.known, Known::Unknown) {
            Known::Verified(before, contents) if trust == Trust::AsApplied => (Some(before), contents),
            Known::Verified(before, contents) => {
                let now = dump::read(self.name).await?;
                (Some(before).filter(|_| contents == now), now)
            }
            _ => (None, dump::read(self.name).await?),
        };
        let script = match before {
            Some(before) if before == desired => {
                self.known = Known::Verified(before, contents);
                return Ok(None);
            }
            Some(before) => script(Before::AsApplied(&before)),
            None => script(Before::AsFound(&contents)),
        };
        if script.is_empty() {
            self.known = Known::Verified(desired, contents);
            return Ok(None);
        }
        Ok(Some(Change { desired, script }))
    }

    /// Notes that the change was run, as this generation.
    pub fn applied(&mut self, change: Change<T>, generation: u32) {
        self.known = Known::Applied(change.desired, generation);
    }

    /// Reads a table that was just applied, to verify it later. If there was
    /// another transaction since, its contents may be of others, and it counts as
    /// unknown.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read_back(&mut self) -> Result<(), Error> {
        self.known = match std::mem::replace(&mut self.known, Known::Unknown) {
            Known::Applied(desired, applied_as) => {
                let contents = dump::read(self.name).await?;
                if generation().await? == applied_as {
                    Known::Verified(desired, contents)
                } else {
                    Known::Unknown
                }
            }
            known => known,
        };
        Ok(())
    }
}
