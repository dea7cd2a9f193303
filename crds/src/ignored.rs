//! Fields that an object has and its type does not.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::bounded::cut;

/// How many names are kept, and how long they may be.
const NAMES_MAX: usize = 32;
const NAME_MAX: usize = 64;

/// The names of fields that have no effect: the first 32 of them, for the
/// object's author. Their values are not kept, and none is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredFields(pub Vec<String>);

impl Serialize for IgnoredFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_map(Some(0))?.end()
    }
}

impl<'de> Deserialize<'de> for IgnoredFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = IgnoredFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<IgnoredFields, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = fields.next_entry::<String, IgnoredAny>()? {
                    if names.len() < NAMES_MAX {
                        names.push(cut(&name, NAME_MAX));
                    }
                }
                names.sort_unstable();
                Ok(IgnoredFields(names))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use crate::SubnetSpec;

    #[test]
    fn b33_fields_of_kube_ovn_are_named_and_not_kept() {
        let text = r#"{"cidrBlock":"10.0.0.0/24","provider":"lan.kube-system","vpc":"ovn-cluster","natOutgoing":true,
            "allowSubnets":["10.1.0.0/16"]}"#;
        let spec: SubnetSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.ignored.0, ["allowSubnets", "natOutgoing", "vpc"]);
        assert_eq!(spec.provider, "lan.kube-system");
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written.get("vpc"), None);
    }
}
