//! Which nodes there are, and which are lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long a deleted node is remembered: as long as the watch of pods may be
/// behind that of nodes. Later the node may be there again, and not be seen yet.
const REMEMBERED: Duration = Duration::from_secs(10);

/// A moment, as the number of lists of all nodes that had been begun by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Moment {
    /// Before everything.
    pub const PAST: Self = Self(0);
}

/// The nodes. That one is not known may mean that it is gone, or that it is not
/// known yet: which of the two depends on since when a pod has been seen on it.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Whether each is declared lost for good.
    known: HashMap<String, bool>,
    deleted: HashMap<String, Instant>,
    begun: u64,
    /// The last list that was seen whole.
    complete: Moment,
}

impl Nodes {
    /// A node is so; `None` if it is gone. Returns whether that is news.
    pub fn set(&mut self, name: &str, lost: Option<bool>, now: Instant) -> bool {
        let before = match lost {
            Some(lost) => {
                self.deleted.remove(name);
                self.known.insert(name.to_owned(), lost)
            }
            None => {
                self.deleted.retain(|_, at| now.duration_since(*at) < REMEMBERED);
                self.deleted.insert(name.to_owned(), now);
                self.known.remove(name)
            }
        };
        before != lost
    }

    /// A list of all nodes begins.
    pub fn begin(&mut self) {
        self.begun += 1;
    }

    /// It has been seen whole.
    pub fn complete(&mut self) {
        self.complete = Moment(self.begun);
    }

    /// Now, for a pod that is seen on this node for the first time.
    pub fn moment(&self, name: &str, now: Instant) -> Moment {
        let deleted = self.deleted.get(name).is_some_and(|at| now.duration_since(*at) < REMEMBERED);
        if deleted { Moment::PAST } else { Moment(self.begun) }
    }

    /// Whether there is a node of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Whether a node is lost on which a pod has been seen since then: it is
    /// declared so, or a whole list that was begun later does not have it.
    pub fn is_lost(&self, name: &str, since: Moment) -> bool {
        self.known.get(name).copied().unwrap_or(since < self.complete)
    }

    /// The nodes' names.
    pub fn names(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }
}
