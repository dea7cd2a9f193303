//! The mounted files: the configuration and Multus's report.

use std::path::Path;
use std::sync::Arc;

use lb_svc_crds::names;
use lb_svc_crds::seal::{PublicKey, Seal, Unsealed};
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
    /// Its generation, if it is signed.
    pub generation: Option<u64>,
}

/// What a configuration has to be signed by, and for.
#[derive(Clone, Debug, Default)]
pub struct Authority {
    /// The gateway's id.
    pub gateway: String,
    /// The keys, of which one is enough; with none, nothing has to be signed.
    pub trusted: Vec<PublicKey>,
}

impl Authority {
    /// Checks the seal in `dir` on the configuration `bytes`. Returns its
    /// generation, if it has to have one.
    fn verify(&self, dir: &Path, bytes: &[u8]) -> Result<Option<u64>, Unsealed> {
        if self.trusted.is_empty() {
            return Ok(None);
        }
        let text = std::fs::read(dir.join(names::SEAL_KEY)).map_err(|_| Unsealed::Missing)?;
        let seal = Seal::open(&text, &self.trusted)?;
        seal.verify(&self.gateway, |part| match part {
            names::CONFIG_KEY => Some(bytes.to_vec()),
            part => std::fs::read(dir.join(Path::new(part).file_name()?)).ok(),
        })?;
        Ok(Some(seal.generation))
    }
}

/// What was last read. An invalid file leaves the previous content in force.
#[derive(Debug, Default)]
pub struct Inputs {
    authority: Authority,
    /// The last valid configuration.
    pub configured: Option<Configured>,
    /// The digest of the file as last read, valid or not; `None` if its signature is
    /// refused.
    pub seen: Option<String>,
    /// The digest of the file as last read, whatever its signature.
    mounted: Option<String>,
    /// The digest of the configuration that the controller has last named on the pod.
    confirmed: Option<String>,
    /// The last report of networks that was not empty.
    pub networks: Vec<Network>,
    config_fault: Option<Fault>,
    networks_fault: Option<Fault>,
}

impl Inputs {
    /// Nothing read yet; configurations are to be signed as `authority` says.
    pub fn new(authority: Authority) -> Self {
        Self { authority, ..Self::default() }
    }

    /// Reads the files. Returns whether the configuration's file has other content than
    /// before.
    pub fn read(&mut self, config_dir: &Path, pod_info_dir: &Path) -> bool {
        let changed = self.read_config(config_dir);
        // A missing file is like an empty one: Multus has not written it yet.
        let path = pod_info_dir.join(names::NETWORK_STATUS_FILE);
        self.set_networks(&std::fs::read_to_string(path).unwrap_or_default());
        self.read_confirmed(pod_info_dir);
        changed
    }

    /// Whether the controller has named the configuration in force on this pod, so that
    /// it is no older one that was put back.
    pub fn is_confirmed(&self) -> bool {
        let in_force = self.configured.as_ref().map(|configured| &configured.digest);
        in_force.is_some() && in_force == self.confirmed.as_ref()
    }

    /// Reads the annotation, which pods of earlier releases do not mount.
    fn read_confirmed(&mut self, pod_info_dir: &Path) {
        let text = std::fs::read_to_string(pod_info_dir.join(names::CONFIRMED_FILE)).unwrap_or_default();
        self.confirmed = names::config_annotation(&text).map(|(digest, _)| digest.to_owned());
    }

    /// Why a file is not in force.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.config_fault.iter().chain(&self.networks_fault)
    }

    fn read_config(&mut self, dir: &Path) -> bool {
        // The kubelet swaps this link when all files of a version are there: what is
        // read behind one of its targets is of one version.
        let dir = std::fs::canonicalize(dir.join("..data")).unwrap_or_else(|_| dir.to_path_buf());
        let path = dir.join(names::CONFIG_KEY);
        match std::fs::read(&path) {
            Ok(bytes) => self.set_config(&bytes, self.authority.verify(&dir, &bytes)),
            Err(error) => {
                self.config_fault = Some(Fault::ConfigMissing { path, why: error.to_string() });
                false
            }
        }
    }

    /// Takes the configuration `bytes`, whose seal gives `generation`.
    fn set_config(&mut self, bytes: &[u8], generation: Result<Option<u64>, Unsealed>) -> bool {
        let digest = names::digest(bytes);
        let changed = self.mounted.replace(digest.clone()).as_ref() != Some(&digest);
        let generation = match generation.map_err(Fault::from).and_then(|it| self.in_order(it, &digest)) {
            Ok(generation) => generation,
            Err(fault) => {
                self.seen = None;
                self.config_fault = Some(fault);
                return changed;
            }
        };
        if self.seen.replace(digest.clone()).as_ref() == Some(&digest) {
            // It can be read again, and is as valid as it was.
            self.config_fault.take_if(|fault| !matches!(fault, Fault::ConfigInvalid(_)));
            if let Some(configured) = self.configured.as_mut().filter(|known| known.digest == digest) {
                configured.generation = generation;
            }
            return changed;
        }
        self.config_fault = match config::parse(bytes) {
            Ok(config) => {
                for note in &config.notes {
                    info!("{note}");
                }
                self.configured = Some(Configured { config: Arc::new(config), digest, generation });
                None
            }
            Err(invalid) => Some(Fault::ConfigInvalid(invalid)),
        };
        true
    }

    /// Refuses a generation before the one in force, and another configuration of
    /// the same.
    fn in_order(&self, generation: Option<u64>, digest: &str) -> Result<Option<u64>, Fault> {
        let known = self.configured.as_ref().and_then(|known| Some((known.generation?, &known.digest)));
        match (generation, known) {
            (Some(mounted), Some((in_force, known)))
                if mounted < in_force || mounted == in_force && known != digest =>
            {
                Err(Fault::ConfigOutdated { mounted, in_force })
            }
            _ => Ok(generation),
        }
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
    use lb_svc_crds::seal::PrivateKey;

    const CONFIG: &[u8] = br#"{"version": 1, "attachment": "a/b", "addresses": [], "frontends": []}"#;

    fn set(inputs: &mut Inputs, dir: &Path) -> (bool, Vec<&'static str>) {
        let changed = inputs.read_config(dir);
        (changed, inputs.faults().map(Fault::reason).collect())
    }

    fn mount(content: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(names::CONFIG_KEY), content).unwrap();
        dir
    }

    #[test]
    fn invalid_config_leaves_the_previous_one_in_force() {
        let mut inputs = Inputs::default();
        let (valid, invalid) = (mount(CONFIG), mount(b"{"));
        assert_eq!(set(&mut inputs, valid.path()), (true, vec![]));
        let digest = inputs.configured.as_ref().unwrap().digest.clone();
        assert_eq!(inputs.seen.as_ref(), Some(&digest));
        assert_eq!(set(&mut inputs, valid.path()), (false, vec![]));
        assert_eq!(set(&mut inputs, invalid.path()), (true, vec!["ConfigInvalid"]));
        assert_eq!(inputs.configured.as_ref().unwrap().digest, digest);
        assert_ne!(inputs.seen, Some(digest));
        assert_eq!(set(&mut inputs, invalid.path()), (false, vec!["ConfigInvalid"]), "still invalid");
        assert_eq!(set(&mut inputs, valid.path()), (true, vec![]));
    }

    #[test]
    fn missing_config_is_a_fault_until_it_can_be_read() {
        let mut inputs = Inputs::default();
        let (valid, missing) = (mount(CONFIG), tempfile::tempdir().unwrap());
        assert_eq!(set(&mut inputs, missing.path()), (false, vec!["ConfigMissing"]));
        assert!(inputs.configured.is_none() && inputs.seen.is_none());
        assert_eq!(set(&mut inputs, valid.path()), (true, vec![]));
        assert_eq!(set(&mut inputs, missing.path()), (false, vec!["ConfigMissing"]));
        assert_eq!(set(&mut inputs, valid.path()), (false, vec![]), "the same as before");
    }

    #[test]
    fn r10_config_is_confirmed_when_the_pod_names_its_digest() {
        let mut inputs = Inputs::default();
        let (config, pod) = (mount(CONFIG), tempfile::tempdir().unwrap());
        let confirmed = |inputs: &mut Inputs, text: &str| {
            std::fs::write(pod.path().join(names::CONFIRMED_FILE), text).unwrap();
            inputs.read(config.path(), pod.path());
            inputs.is_confirmed()
        };
        assert!(!Inputs::default().is_confirmed());
        assert!(!confirmed(&mut inputs, ""));
        assert!(confirmed(&mut inputs, &format!("{}.3", names::digest(CONFIG))));
        assert!(!confirmed(&mut inputs, &format!("{}.3", names::digest(b"{}"))), "of another");
        std::fs::remove_file(pod.path().join(names::CONFIRMED_FILE)).unwrap();
        inputs.read(config.path(), pod.path());
        assert!(!inputs.is_confirmed(), "of an earlier release");
    }

    /// A mounted configuration that serves `address`, with the seal.
    fn sealed(address: u8, seal: Option<&str>) -> (tempfile::TempDir, Vec<u8>) {
        let content = String::from_utf8(CONFIG.to_vec()).unwrap();
        let content = content.replace(
            r#""addresses": []"#,
            &format!(r#""addresses": [{{"address": "172.18.0.{address}", "cidr": "172.18.0.0/16", "subnet": "lan"}}]"#),
        );
        let dir = mount(content.as_bytes());
        if let Some(seal) = seal {
            std::fs::write(dir.path().join(names::SEAL_KEY), seal).unwrap();
        }
        (dir, content.into_bytes())
    }

    fn serves(inputs: &Inputs) -> Option<u8> {
        Some(inputs.configured.as_ref()?.config.addresses.first()?.address.octets()[3])
    }

    #[test]
    fn r10_only_what_the_controller_signed_for_this_gateway_is_carried_out() {
        let key = PrivateKey::from_seed(&[1; 32]).unwrap();
        let authority = Authority { gateway: "uid".into(), trusted: vec![key.public()] };
        let mut inputs = Inputs::new(authority);
        let refused = (true, vec!["ConfigUnsigned"]);
        assert_eq!(set(&mut inputs, sealed(1, None).0.path()), refused);
        assert_eq!((serves(&inputs), &inputs.seen), (None, &None));

        let sign = |key: &PrivateKey, gateway: &str, generation: u64, address: u8| {
            let (_, content) = sealed(address, None);
            sealed(address, Some(&key.sign(&Seal::of_config(gateway, generation, &content)))).0
        };
        assert_eq!(set(&mut inputs, sign(&key, "uid", 5, 2).path()), (true, vec![]));
        assert_eq!((serves(&inputs), inputs.configured.as_ref().unwrap().generation), (Some(2), Some(5)));

        // Another content under a seal that is valid for the first, no seal, that of
        // another gateway, and that of another key.
        let (_, content) = sealed(2, None);
        let seal = key.sign(&Seal::of_config("uid", 6, &content));
        let other = PrivateKey::from_seed(&[2; 32]).unwrap();
        for forged in [
            sealed(3, Some(&seal)).0,
            sealed(4, None).0,
            sealed(5, Some("{")).0,
            sign(&key, "other", 9, 6),
            sign(&other, "uid", 9, 7),
        ] {
            assert_eq!(set(&mut inputs, forged.path()), refused);
            assert_eq!((serves(&inputs), &inputs.seen), (Some(2), &None), "the last good one is in force");
        }
        assert_eq!(set(&mut inputs, sealed(2, Some(&seal)).0.path()), (true, vec![]));
        assert_eq!(inputs.configured.as_ref().unwrap().generation, Some(6), "signed anew");
    }

    #[test]
    fn r10_older_signed_config_is_refused() {
        let key = PrivateKey::from_seed(&[1; 32]).unwrap();
        let mut inputs = Inputs::new(Authority { gateway: "uid".into(), trusted: vec![key.public()] });
        let sign = |generation: u64, address: u8| {
            let (_, content) = sealed(address, None);
            sealed(address, Some(&key.sign(&Seal::of_config("uid", generation, &content)))).0
        };
        assert_eq!(set(&mut inputs, sign(5, 2).path()), (true, vec![]));
        for (generation, address) in [(4, 1), (5, 1)] {
            let before = sign(generation, address);
            assert_eq!(set(&mut inputs, before.path()).1, ["ConfigOutdated"]);
            assert_eq!((serves(&inputs), &inputs.seen), (Some(2), &None));
        }
        assert_eq!(set(&mut inputs, sign(5, 2).path()), (true, vec![]));
        assert_eq!(set(&mut inputs, sign(6, 1).path()), (true, vec![]));
        assert_eq!(serves(&inputs), Some(1));
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
