//! YAML, and JSON with it, in which nothing is passed over.

use serde::de::DeserializeOwned;

/// Reads a value of type `T`.
///
/// # Errors
/// What is wrong and where; a field that the type does not have is an error.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // Enough for whatever a person writes; aliases could make much of little.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_aliases: 0, max_documents: 1, max_nodes: 10_000 },
        with_snippet: false,
    };
    let mut unknown = Vec::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))
    });
    let value = read.map_err(|error| error.to_string())?;
    match unknown.first() {
        Some(path) => Err(format!("there is no field {}", path.replace(".?", ""))),
        None => Ok(value),
    }
}
