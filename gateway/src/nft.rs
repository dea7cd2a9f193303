//! nftables tables of our own, by nft(8).

use crate::tool::{self, RunError};

/// A table of ours, and what is known of it.
pub struct Table {
    name: &'static str,
    /// Whether the elements of its sets come and go by themselves.
    is_lively: bool,
    /// What it was last made from, and how the kernel was seen to hold it then.
    known: Option<(String, String)>,
}

impl Table {
    /// The table of this name, `<family> <name>`, which changes by our hand
    /// alone.
    pub fn new(name: &'static str) -> Self {
        Self { name, is_lively: false, known: None }
    }

    /// The same, with sets whose elements come and go by themselves.
    pub fn lively(name: &'static str) -> Self {
        Self { is_lively: true, ..Self::new(name) }
    }

    /// Makes the table what `wanted` says: has nft run, as one transaction, what
    /// `script` makes of how the kernel holds it now. With `suspect` that is
    /// looked at; without, it is taken to be as it was left. Returns whether
    /// anything was run.
    ///
    /// # Errors
    /// When nft or the kernel refuses; nothing is changed then.
    pub async fn ensure(
        &mut self,
        wanted: &str,
        suspect: bool,
        script: impl FnOnce(&str) -> String,
    ) -> Result<bool, RunError> {
        let known = self.known.take();
        let held = match &known {
            Some((_, held)) if !suspect => held.clone(),
            _ => self.list().await?,
        };
        let is_as_left = known.is_some_and(|(from, as_left)| from == wanted && as_left == held);
        let script = if is_as_left { String::new() } else { script(&held) };
        let runs = !script.is_empty();
        if runs {
            tool::run("nft", &["-f", "-"], &script).await?;
        }
        let held = if runs { self.list().await? } else { held };
        self.known = Some((wanted.to_owned(), held));
        Ok(runs)
    }

    /// How the kernel holds it, without what counts by itself; empty if it does
    /// not.
    async fn list(&self) -> Result<String, RunError> {
        let options: &[&str] = if self.is_lively { &["-s", "-t"] } else { &["-s"] };
        let list = format!("list table {}", self.name);
        match tool::run("nft", &[options, &[&list]].concat(), "").await {
            Err(RunError::Failed { .. }) => Ok(String::new()),
            result => result,
        }
    }
}
