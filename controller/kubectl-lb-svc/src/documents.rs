//! Objects from files: YAML or JSON, of one or many documents, in which nothing
//! is passed over without a word.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::view;

/// The most bytes of all files together.
const FILES_MAX: usize = 16 << 20;
/// The most YAML nodes of one file.
const NODES_MAX: usize = 1_000_000;
/// The most documents of one file.
const DOCUMENTS_MAX: usize = 20_000;

/// Reads files; "-" is standard input.
///
/// # Errors
/// Which file cannot be read, which document and field of it is wrong, and why.
pub fn read(files: &[impl AsRef<Path>], namespace: &str, now: Timestamp) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster { now, ..Cluster::default() };
    let mut left = FILES_MAX;
    for file in files {
        let file = file.as_ref();
        let text = if file == Path::new("-") {
            bounded(stdin().lock(), left)
        } else {
            File::open(file).map_err(anyhow::Error::from).and_then(|open| bounded(open, left))
        };
        let of_file = || format!("{}", file.display());
        let text = text.with_context(of_file)?;
        left -= text.len();
        add(&mut cluster, &text, namespace).with_context(of_file)?;
    }
    Ok(cluster)
}

fn bounded(source: impl Read, most: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    source.take(most as u64 + 1).read_to_string(&mut text)?;
    ensure!(text.len() <= most, "the files have more than {} MiB", FILES_MAX >> 20);
    Ok(text)
}

/// Adds the objects in `text`; those that name no namespace are in `namespace`.
///
/// # Errors
/// Which document and field is wrong, and why.
pub fn add(cluster: &mut Cluster, text: &str, namespace: &str) -> anyhow::Result<()> {
    // Aliases could make much of little.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_aliases: 0, max_documents: DOCUMENTS_MAX, max_nodes: NODES_MAX },
        with_snippet: false,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    for (number, document) in documents.into_iter().enumerate() {
        let of_document = || format!("document {}", number + 1);
        if document.is_null() {
            continue;
        }
        if is_list(&document) {
            let Value::Array(items) = document["items"].clone() else {
                bail!("{}: items: a list is expected", of_document());
            };
            for (item, object) in items.into_iter().enumerate() {
                add_object(cluster, object, namespace)
                    .with_context(|| format!("{}: items[{item}]", of_document()))?;
            }
        } else {
            add_object(cluster, document, namespace).with_context(of_document)?;
        }
    }
    Ok(())
}

fn is_list(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && object.get("items").is_some()
}

/// Adds one object.
fn add_object(cluster: &mut Cluster, mut object: Value, namespace: &str) -> anyhow::Result<()> {
    let field = |name: &str| {
        let value = object[name].as_str().map(str::to_owned);
        value.with_context(|| format!("{name}: a string is expected"))
    };
    let (version, kind) = (field("apiVersion")?, field("kind")?);
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
        bail!("{kind}: metadata.name: a string is expected");
    };
    let is_namespaced = !matches!(kind.as_str(), "Subnet" | "IP" | "Node");
    if is_namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = namespace.into();
    }
    let place = object["metadata"]["namespace"].as_str().map(|namespace| format!("{namespace}/"));
    let of_object = || format!("{kind} {}{name}", place.clone().unwrap_or_default());
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => cluster.services.push(typed(object).with_context(of_object)?),
        ("v1", "Node") => cluster.nodes.push(typed(object).with_context(of_object)?),
        ("v1", "Pod") => cluster.pods.push(typed(object).with_context(of_object)?),
        ("v1", "ConfigMap") => cluster.configs.push(typed(object).with_context(of_object)?),
        ("v1", "Event") => cluster.events.push(typed(object).with_context(of_object)?),
        ("kubeovn.io/v1", "Subnet") => cluster.subnets.push(typed(object).with_context(of_object)?),
        ("kubeovn.io/v1", "IP") => cluster.claims.push(typed(object).with_context(of_object)?),
        ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition") => {
            cluster.attachments.push(typed(object).with_context(of_object)?);
        }
        ("apps/v1", "Deployment") => {
            let deployment: Deployment = typed(object).with_context(of_object)?;
            let is_controller = view::is_controller(&deployment);
            let deployments = if is_controller { &mut cluster.controllers } else { &mut cluster.deployments };
            deployments.push(deployment);
        }
        ("policy/v1", "PodDisruptionBudget") => {
            cluster.budgets.push(typed(object).with_context(of_object)?);
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            cluster.slices.push(typed(object).with_context(of_object)?);
        }
        ("coordination.k8s.io/v1", "Lease") => cluster.leases.push(typed(object).with_context(of_object)?),
        _ => cluster.unseen.push(format!("{}: no kind that decides anything here", of_object())),
    }
    Ok(())
}

/// The object as a type that knows all fields that the object has, those of its status
/// aside: nobody writes that by hand, and a newer API server says more.
fn typed<T: DeserializeOwned>(object: Value) -> anyhow::Result<T> {
    let mut unknown = None;
    let mut passed_over = |path: serde_ignored::Path<'_>| {
        // `?` stands for what may be absent, which is no part of a path in a file.
        let path = path.to_string().replace(".?", "");
        // Which type it is has been decided by the first two.
        let is_known = ["apiVersion", "kind"].contains(&path.as_str());
        if !is_known && !path.starts_with("status.") && !path.starts_with("metadata.managedFields") {
            unknown.get_or_insert(path);
        }
    };
    let read = serde_ignored::Deserializer::new(object, &mut passed_over);
    let value = serde_path_to_error::deserialize(read).map_err(|error| {
        let path = error.path().to_string().replace(".?", "");
        anyhow::anyhow!("{path}: {}", error.into_inner())
    })?;
    match unknown {
        Some(path) => bail!("there is no field {path}"),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(text: &str) -> Result<Cluster, String> {
        let mut cluster = Cluster::default();
        add(&mut cluster, text, "shop").map_err(|error| format!("{error:#}"))?;
        Ok(cluster)
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

    #[test]
    fn documents_and_lists_are_read_in_order() {
        let text = format!(
            "---\n# nothing\n---\n{SERVICE}spec: {{type: LoadBalancer}}\n---\n\
             {{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{{\"apiVersion\": \"v1\", \"kind\": \"Service\",\
             \"metadata\": {{\"name\": \"b\", \"namespace\": \"other\"}}}}]}}\n"
        );
        let cluster = added(&text).unwrap();
        assert!(
            cluster.services.get("shop", "web").is_some() && cluster.services.get("other", "b").is_some()
        );
        assert_eq!(cluster.services.iter().count(), 2);
    }

    #[test]
    fn error_names_document_object_and_field() {
        let second = |text: &str| added(&format!("{SERVICE}---\n{text}")).unwrap_err();
        for (text, expected) in [
            (
                format!("{SERVICE}spec: {{ports: [{{port: http}}]}}"),
                "document 2: Service shop/web: spec.ports[0].port: ",
            ),
            (
                format!("{SERVICE}spec: {{loadBalancerIp: 10.0.0.1}}"),
                "document 2: Service shop/web: there is no field spec.loadBalancerIp",
            ),
            (
                "apiVersion: kubeovn.io/v1\nkind: Subnet\nmetadata: {name: lan}\nspec: {provider: a.b}"
                    .into(),
                "document 2: Subnet lan: spec: missing field `cidrBlock`",
            ),
            (
                "apiVersion: v1\nkind: List\nitems: [{kind: Service}]".into(),
                "document 2: items[0]: apiVersion: a string is expected",
            ),
            (
                "kind: Service\napiVersion: v1".into(),
                "document 2: Service: metadata.name: a string is expected",
            ),
        ] {
            let error = second(&text);
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(added("a: &a [b]\nc: *a").unwrap_err().contains("alias"), "much of little");
    }

    #[test]
    fn status_of_a_newer_api_server_is_read() {
        assert!(added(&format!("{SERVICE}status: {{novel: true}}")).is_ok());
    }

    #[test]
    fn kind_that_decides_nothing_is_said() {
        let cluster = added("apiVersion: v1\nkind: Secret\nmetadata: {name: key}").unwrap();
        assert_eq!(cluster.unseen, ["Secret shop/key: no kind that decides anything here"]);
    }

    #[test]
    fn files_are_bounded() {
        let endless = std::io::repeat(b'#');
        assert!(bounded(endless, 1000).unwrap_err().to_string().contains("16 MiB"));
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), "abc");
    }
}
