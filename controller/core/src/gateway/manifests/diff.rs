//! Whether an object is what it should be.

use serde_json::Value;

use super::quantity;

/// Whether a Deployment, with its metadata and spec as the API server has them,
/// is what it should be, and nothing more: a field that others add to its spec
/// may make its pods something else.
///
/// `as_answered`: the spec is what the API server made of our own last write.
/// What it has beyond that is the cluster's own doing, by defaults of a later
/// release or by admission, and would come again.
pub fn is_as_wanted(live: &Value, wanted: &Value, as_answered: bool) -> bool {
    let metadata = ["labels", "annotations", "ownerReferences"];
    contains(&live["spec"], &wanted["spec"])
        && (as_answered || !exceeds(&live["spec"], &wanted["spec"]))
        && metadata.iter().all(|field| contains(&live["metadata"][field], &wanted["metadata"][field]))
}

/// Whether `live` already says all that `wanted` says. What the API server
/// filled in or others added to objects is no difference; a list has to have
/// the same length.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let compare = if key == "resources" { contains_resources } else { contains };
            live.get(key).map_or(is_nothing(wanted), |live| compare(live, wanted))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        _ => live == wanted,
    }
}

/// What the API server fills into the spec of a Deployment (Kubernetes API,
/// apps/v1 and core/v1 defaults), by field.
const DEFAULTS: [(&str, &str); 10] = [
    ("restartPolicy", r#""Always""#),
    ("dnsPolicy", r#""ClusterFirst""#),
    ("schedulerName", r#""default-scheduler""#),
    ("terminationMessagePath", r#""/dev/termination-log""#),
    ("terminationMessagePolicy", r#""File""#),
    ("successThreshold", "1"),
    ("apiVersion", r#""v1""#),
    ("defaultMode", "420"),
    ("protocol", r#""TCP""#),
    ("minReadySeconds", "0"),
];

/// Whether `live` says more than `wanted`, beyond what the API server fills in,
/// and annotations of pods: `kubectl rollout restart` sets one.
fn exceeds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            live.iter().any(|(key, live)| match wanted.get(key) {
                Some(_) if key == "annotations" => false,
                Some(wanted) => exceeds(live, wanted),
                None => !is_nothing(live) && !DEFAULTS.contains(&(key.as_str(), live.to_string().as_str())),
            })
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.iter().zip(wanted).any(|(live, wanted)| exceeds(live, wanted))
        }
        _ => false,
    }
}

/// Whether the API server leaves such a value out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// [`contains`] for a container's resources, which the API server writes back
/// in another form.
fn contains_resources(live: &Value, wanted: &Value) -> bool {
    let nanos = |value: &Value| value.as_str().and_then(quantity::nanos);
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            live.get(key).map_or(is_nothing(wanted), |live| contains_resources(live, wanted))
        }),
        (Value::String(_), Value::String(_)) if nanos(live).is_some() => nanos(live) == nanos(wanted),
        _ => contains(live, wanted),
    }
}
