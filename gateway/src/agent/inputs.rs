//! The mounted files: the configuration and Multus's report.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lb_svc_crds::names;
use tracing::info;

use crate::config::{self, Config};
use crate::fault::Fault;
use crate::link::network_status::{self, Network};

/// A valid configuration, with the digest of its file.
#[derive(Clone, Debug)]
pub struct Configured {
    /// The configuration.
    pub config: Arc<Config>,
    /// SHA-256 of the file.
    pub digest: String,
}

/// What was last read. An invalid file leaves the previous content in force.
#[derive(Debug, Default)]
pub struct Inputs {
    /// The last valid configuration.
    pub configured: Option<Configured>,
    /// The digest of the file as last read, valid or not.
    pub seen: Option<String>,
    /// The last report of networks that was not empty.
    pub networks: Vec<Network>,
    config_fault: Option<Fault>,
    networks_fault: Option<Fault>,
}

impl Inputs {
    /// Reads the files. Returns whether the configuration's file has other content than
    /// before.
    pub fn read(&mut self, config_dir: &Path, pod_info_dir: &Path) -> bool {
        let path = config_dir.join(names::CONFIG_KEY);
        let changed = self.set_config(&path, std::fs::read(&path));
        // A missing file is like an empty one: Multus has not written it yet.
        let path = pod_info_dir.join(names::NETWORK_STATUS_FILE);
        self.set_networks(&std::fs::read_to_string(path).unwrap_or_default());
        changed
    }

    /// Why a file is not in force.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.config_fault.iter().chain(&self.networks_fault)
    }

    fn set_config(&mut self, path: &Path, content: io::Result<Vec<u8>>) -> bool {
        let bytes = match content {
            Ok(bytes) => bytes,
            Err(error) => {
                let path = path.to_path_buf();
                self.config_fault = Some(Fault::ConfigMissing { path, why: error.to_string() });
                return false;
            }
        };
        let digest = names::digest(&bytes);
        let previous = self.seen.replace(digest.clone());
        if previous.as_ref() == Some(&digest) {
            // It can be read again, and is as valid as it was.
            self.config_fault.take_if(|fault| !matches!(fault, Fault::ConfigInvalid(_)));
            return false;
        }
        self.config_fault = match config::parse(&bytes) {
            Ok(config) => {
                for note in &config.notes {
                    info!("{note}");
                }
                self.configured = Some(Configured { config: Arc::new(config), digest });
                None
            }
            Err(invalid) => Some(Fault::ConfigInvalid(invalid)),
        };
        true
    }

    fn set_networks(&mut self, text: &str) {
        self.networks_fault = match network_status::parse(text) {
            Ok(networks) => {
                // If a report disappears, the interface is still there.
                if !networks.is_empty() {
                    self.networks = networks;
                }
                None
            }
            Err(fault) => Some(fault),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] = br#"{"version": 1, "attachment": "a/b", "addresses": [], "frontends": []}"#;

    fn set(inputs: &mut Inputs, content: io::Result<&[u8]>) -> (bool, Vec<&'static str>) {
        let changed = inputs.set_config(Path::new("/config.json"), content.map(<[u8]>::to_vec));
        (changed, inputs.faults().map(Fault::reason).collect())
    }

    fn missing() -> io::Result<&'static [u8]> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn invalid_config_leaves_the_previous_one_in_force() {
        let mut inputs = Inputs::default();
        assert_eq!(set(&mut inputs, Ok(CONFIG)), (true, vec![]));
        let digest = inputs.configured.as_ref().unwrap().digest.clone();
        assert_eq!(inputs.seen.as_ref(), Some(&digest));
        assert_eq!(set(&mut inputs, Ok(CONFIG)), (false, vec![]));
        assert_eq!(set(&mut inputs, Ok(b"{")), (true, vec!["ConfigInvalid"]));
        assert_eq!(inputs.configured.as_ref().unwrap().digest, digest);
        assert_ne!(inputs.seen, Some(digest));
        assert_eq!(set(&mut inputs, Ok(b"{")), (false, vec!["ConfigInvalid"]), "still invalid");
        assert_eq!(set(&mut inputs, Ok(CONFIG)), (true, vec![]));
    }

    #[test]
    fn missing_config_is_a_fault_until_it_can_be_read() {
        let mut inputs = Inputs::default();
        assert_eq!(set(&mut inputs, missing()), (false, vec!["ConfigMissing"]));
        assert!(inputs.configured.is_none() && inputs.seen.is_none());
        assert_eq!(set(&mut inputs, Ok(CONFIG)), (true, vec![]));
        assert_eq!(set(&mut inputs, missing()), (false, vec!["ConfigMissing"]));
        assert_eq!(set(&mut inputs, Ok(CONFIG)), (false, vec![]), "the same as before");
    }

    #[test]
    fn empty_report_keeps_the_networks() {
        let mut inputs = Inputs::default();
        inputs.set_networks(r#"[{"name": "a/b", "interface": "net1"}]"#);
        inputs.set_networks("");
        assert_eq!(inputs.networks.len(), 1);
        inputs.set_networks("{");
        assert_eq!(inputs.faults().map(Fault::reason).collect::<Vec<_>>(), ["NetworkStatusInvalid"]);
        assert_eq!(inputs.networks.len(), 1);
    }
}
