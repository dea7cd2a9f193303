//! Which of two observations of an object is the newer one.

use std::any::TypeId;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// For how long an object that is gone is remembered: longer than an answer to
/// a write of ours may be on its way.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The newest version seen of each object.
///
/// What a watch shows and what the API server answers to our own writes come
/// on different ways, and the later is not always the newer: an answer that is
/// overtaken by an edit, or by the object's end, must not undo it here. The API
/// server itself compares resourceVersions of one kind as numbers.
#[derive(Debug, Default)]
pub struct Versions {
    newest: HashMap<Object, u64>,
    gone: VecDeque<(Instant, Object)>,
}

/// Kind and uid.
type Object = (TypeId, String);

impl Versions {
    /// An object of kind `K` is seen in this version. Returns whether nothing
    /// newer has been seen of it.
    pub fn see<K: 'static>(&mut self, uid: &str, version: &str) -> bool {
        // What cannot be compared is believed.
        let Ok(version) = version.parse::<u64>() else { return true };
        let newest = self.newest.entry((TypeId::of::<K>(), uid.to_owned())).or_default();
        let news = version >= *newest;
        *newest = version.max(*newest);
        news
    }

    /// An object is gone, as of this version.
    pub fn end<K: 'static>(&mut self, uid: &str, version: &str, now: Instant) {
        self.see::<K>(uid, version);
        while self.gone.front().is_some_and(|(at, _)| now.duration_since(*at) > REMEMBERED) {
            if let Some((_, object)) = self.gone.pop_front() {
                self.newest.remove(&object);
            }
        }
        self.gone.push_back((now, (TypeId::of::<K>(), uid.to_owned())));
    }

    /// Objects of kind `K` are listed anew: that is believed, whatever it says.
    pub fn forget<K: 'static>(&mut self) {
        self.newest.retain(|(kind, _), _| *kind != TypeId::of::<K>());
        self.gone.retain(|(_, (kind, _))| *kind != TypeId::of::<K>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pod;
    struct Service;

    #[test]
    fn older_version_is_ignored() {
        let mut versions = Versions::default();
        assert!(versions.see::<Service>("a", "9"));
        assert!(versions.see::<Service>("a", "10"), "compared as numbers");
        assert!(versions.see::<Service>("a", "10"), "an echo does no harm");
        assert!(!versions.see::<Service>("a", "9"));
        assert!(versions.see::<Service>("b", "9"));
        versions.forget::<Pod>();
        assert!(!versions.see::<Service>("a", "9"));
        versions.forget::<Service>();
        assert!(versions.see::<Service>("a", "9"));
    }

    #[test]
    fn deleted_object_stays_gone_and_is_forgotten() {
        let (mut versions, start) = (Versions::default(), Instant::now());
        versions.see::<Pod>("a", "5");
        versions.end::<Pod>("a", "7", start);
        assert!(!versions.see::<Pod>("a", "6"));
        versions.end::<Pod>("b", "8", start + REMEMBERED);
        assert_eq!(versions.newest.len(), 2);
        versions.end::<Pod>("c", "9", start + REMEMBERED * 2);
        assert_eq!((versions.newest.len(), versions.gone.len()), (2, 2), "a is forgotten");
    }
}
