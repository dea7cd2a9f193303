//! Prints one of the product's CustomResourceDefinitions as YAML.
//!
//! `crdgen subnets` or `crdgen ips`; `make crds` writes both.

use lb_svc_crds::definitions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plural = std::env::args().nth(1).unwrap_or_default();
    let definition = definitions().into_iter().find(|definition| definition.spec.names.plural == plural);
    serde_saphyr::to_io_writer(&mut std::io::stdout(), &definition.ok_or("usage: crdgen subnets|ips")?)?;
    Ok(())
}
