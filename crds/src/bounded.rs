//! Reading no more than a bound of what others write: the rest is passed over
//! while it is read, so that it never takes memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// `text`, cut to `max` bytes and an ellipsis where it is longer.
pub fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max)])
}

/// A string of which `MAX` bytes are kept.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Text<const MAX: usize>(String);

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Cut<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Cut<MAX> {
            type Value = Text<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(cut(text, MAX)))
            }
        }
        deserializer.deserialize_str(Cut)
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

/// Reads a string, of which `MAX` bytes are kept.
pub(crate) fn text<'de, D, const MAX: usize>(deserializer: D) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
{
    Text::<MAX>::deserialize(deserializer).map(String::from)
}

/// The same for one that may be missing.
pub(crate) fn optional_text<'de, D, const MAX: usize>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Text<MAX>>::deserialize(deserializer)?.map(String::from))
}

/// Reads a list, of which the first `MAX` items are kept.
pub(crate) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct First<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for First<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < MAX {
                match items.next_element()? {
                    Some(item) => kept.push(item),
                    None => return Ok(kept),
                }
            }
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }
    deserializer.deserialize_seq(First::<T, MAX>(PhantomData))
}

/// Reads a list of strings: `MAX` of them, and `LENGTH` bytes of each.
pub(crate) fn texts<'de, D, const MAX: usize, const LENGTH: usize>(
    deserializer: D,
) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let kept = list::<_, Text<LENGTH>, MAX>(deserializer)?;
    Ok(kept.into_iter().map(String::from).collect())
}

/// Reads a set, from a list of which the first `MAX` items are kept.
pub(crate) fn set<'de, D, T, const MAX: usize>(deserializer: D) -> Result<BTreeSet<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord,
{
    Ok(list::<_, T, MAX>(deserializer)?.into_iter().collect())
}

/// Reads a map to strings: `MAX` entries, and `LENGTH` bytes of each value.
/// Keys must be of a type that is bounded itself.
pub(crate) fn map<'de, D, K, const MAX: usize, const LENGTH: usize>(
    deserializer: D,
) -> Result<BTreeMap<K, String>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
{
    struct First<K, const MAX: usize, const LENGTH: usize>(PhantomData<K>);
    impl<'de, K, const MAX: usize, const LENGTH: usize> Visitor<'de> for First<K, MAX, LENGTH>
    where
        K: Deserialize<'de> + Ord,
    {
        type Value = BTreeMap<K, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while kept.len() < MAX {
                match entries.next_entry::<K, Text<LENGTH>>()? {
                    Some((key, value)) => drop(kept.insert(key, value.into())),
                    None => return Ok(kept),
                }
            }
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }
    deserializer.deserialize_map(First::<K, MAX, LENGTH>(PhantomData))
}

/// Reads a set of strings: [`texts`] as a set.
pub(crate) fn text_set<'de, D, const MAX: usize, const LENGTH: usize>(
    deserializer: D,
) -> Result<BTreeSet<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(texts::<_, MAX, LENGTH>(deserializer)?.into_iter().collect())
}

/// Reads a map of strings: [`map`] whose keys are cut to 64 bytes.
pub(crate) fn text_map<'de, D, const MAX: usize, const LENGTH: usize>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let kept = map::<_, Text<64>, MAX, LENGTH>(deserializer)?;
    Ok(kept.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// Reads a map of strings that may be missing: [`map`] whose keys are cut to `KEY` bytes.
pub(crate) fn optional_text_map<'de, D, const MAX: usize, const KEY: usize, const LENGTH: usize>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Present<const MAX: usize, const KEY: usize, const LENGTH: usize>(BTreeMap<String, String>);
    impl<'de, const MAX: usize, const KEY: usize, const LENGTH: usize> Deserialize<'de>
        for Present<MAX, KEY, LENGTH>
    {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let kept = map::<_, Text<KEY>, MAX, LENGTH>(deserializer)?;
            Ok(Self(kept.into_iter().map(|(key, value)| (key.into(), value)).collect()))
        }
    }
    Ok(Option::<Present<MAX, KEY, LENGTH>>::deserialize(deserializer)?.map(|present| present.0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::cut;
    use crate::gateway::GatewayStatus;

    #[test]
    fn cut_ends_at_a_character() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "abc…");
        assert_eq!(cut("aää", 2), "a…");
    }

    #[test]
    fn r2_status_keeps_no_more_than_a_gateway_says() {
        let faults: Vec<String> =
            (0..10_000).map(|n| format!("\"f{n:05}\":\"{}\"", "ä".repeat(600))).collect();
        let conflicts: Vec<String> =
            (0..10_000).map(|n| format!("\"10.0.{}.{}\":\"x\"", n / 256, n % 256)).collect();
        let parts: Vec<String> =
            (0..10_000).map(|n| format!("\"{n}{0}\":\"{0}\"", "x".repeat(500))).collect();
        let features: Vec<String> = (0..1000).map(|n| format!("\"{n}{}\"", "f".repeat(100))).collect();
        let peers = vec![format!("\"{}\"", "p".repeat(1000)); 1000].join(",");
        let text = format!(
            "{{\"build\":\"{0}\",\"digest\":\"{0}\",\"faults\":{{{1}}},\"conflicts\":{{{2}}},\
             \"election\":{{\"why\":\"{0}\",\"active\":\"{0}\",\"peers\":[{3}]}},\
             \"interface\":{{\"name\":\"{0}\",\"mac\":\"{0}\"}},\
             \"features\":[{4}],\"parts\":{{{5}}}}}",
            "b".repeat(5000),
            faults.join(","),
            conflicts.join(","),
            peers,
            features.join(","),
            parts.join(",")
        );
        let status: GatewayStatus = serde_json::from_str(&text).unwrap();
        assert_eq!((status.faults.len(), status.conflicts.len(), status.features.len()), (32, 64, 64));
        // A part for each of the many Services that one gateway may serve.
        let kept = serde_json::to_string(&status).unwrap();
        assert_eq!(status.parts.as_ref().map(BTreeMap::len), Some(4096));
        assert!(kept.len() < 900_000, "{} bytes are kept", kept.len());
        let status = GatewayStatus { parts: None, ..status };
        let kept = serde_json::to_string(&status).unwrap();
        assert!(kept.len() < 44_000, "{} bytes are kept", kept.len());
        // What a gateway does say is kept whole.
        let again: GatewayStatus = serde_json::from_str(&kept).unwrap();
        assert_eq!(again.election.unwrap().peers.len(), 16);
    }
}
