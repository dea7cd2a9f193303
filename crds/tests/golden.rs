//! The committed YAML is what the types say.

use lb_svc_crds::definitions;

#[test]
fn crd_yaml_is_what_the_types_generate() {
    let committed = [include_str!("../yaml/subnets.yaml"), include_str!("../yaml/ips.yaml")];
    for (crd, committed) in definitions().into_iter().zip(committed) {
        let name = crd.metadata.name.as_deref().unwrap_or_default().to_owned();
        let generated = serde_saphyr::to_string(&crd).unwrap();
        assert_eq!(generated, committed, "{name} has drifted from the types: run `make crds`");
    }
}

#[test]
fn r6_definitions_are_labelled_and_prune_nothing() {
    for crd in definitions() {
        let labels = crd.metadata.labels.unwrap_or_default();
        assert_eq!(labels.get("app.kubernetes.io/managed-by").map(String::as_str), Some("lb-svc"));
        let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        for (name, part) in schema.properties.as_ref().unwrap() {
            let keeps = part.x_kubernetes_preserve_unknown_fields == Some(true);
            assert!(keeps || !["spec", "status"].contains(&name.as_str()), "{name}");
        }
    }
}
