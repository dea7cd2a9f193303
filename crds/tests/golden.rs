//! The committed YAML is what the types say.

use kube::CustomResourceExt;
use lb_svc_crds::{IP, Subnet};

#[test]
fn the_committed_yaml_is_what_the_types_say() {
    for (crd, committed) in
        [(Subnet::crd(), include_str!("../yaml/subnets.yaml")), (IP::crd(), include_str!("../yaml/ips.yaml"))]
    {
        let name = crd.metadata.name.as_deref().unwrap_or_default().to_owned();
        let generated = serde_saphyr::to_string(&crd).unwrap();
        assert_eq!(generated, committed, "{name} has drifted from the types: run `make crds`");
    }
}
