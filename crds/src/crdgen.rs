//! Prints one of the product's CustomResourceDefinitions as YAML.
//!
//! `crdgen subnets` or `crdgen ips`; `make crds` writes both.

use kube::CustomResourceExt;
use lb_svc_crds::{IP, Subnet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let crd = match std::env::args().nth(1).as_deref() {
        Some("subnets") => Subnet::crd(),
        Some("ips") => IP::crd(),
        _ => return Err("usage: crdgen subnets|ips".into()),
    };
    serde_saphyr::to_io_writer(&mut std::io::stdout(), &crd)?;
    Ok(())
}
