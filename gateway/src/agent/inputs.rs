//! The configuration, mounted or pushed, and Multus's report.
//!
//! ```text
//!  pushed ──▶ kept copy ─┐
//!                        ├─▶ of the generations in force and offered, the later one
//!  mounted file ─────────┘
//! ```
//!
//! The kubelet brings the mounted file up to date within a minute or two, so that it is
//! behind what was pushed meanwhile.

use std::path::Path;
use std::sync::Arc;

use lb_svc_crds::names;
use lb_svc_crds::seal::Unsealed;
use tracing::info;

use super::kept::Kept;
use crate::config::sealed::{Authority, Sealed};
use crate::config::{self, Config};
use crate::fault::Fault;
use crate::link::network_status::{self, Network};
use crate::telemetry::push::Refusal;

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

/// What was last read. An invalid file leaves the previous content in force.
#[derive(Debug, Default)]
pub struct Inputs {
    authority: Authority,
    kept: Kept,
    /// The last valid configuration.
    pub configured: Option<Configured>,
    /// The digest of the configuration that was last pushed, or read from the file, valid
    /// or not; `None` if the file's signature is refused.
    pub seen: Option<String>,
    /// The digests of the file as last read and of its seal, whatever that is.
    mounted: Option<String>,
    /// The same of a file that a push has come after.
    overtaken: Option<String>,
    /// The latest generation that was mounted.
    mounted_generation: Option<u64>,
    /// The latest generation that was pushed.
    pushed_generation: Option<u64>,
    /// The digest of the configuration that the controller has last named on the pod.
    confirmed: Option<String>,
    /// The generation of a configuration that was in force and confirmed.
    confirmed_generation: Option<u64>,
    /// The last report of networks that was not empty.
    pub networks: Vec<Network>,
    config_fault: Option<Fault>,
    networks_fault: Option<Fault>,
}

/// The place of a mounted generation beside those that were in force.
enum Place {
    /// It is the latest one.
    Latest(Option<u64>),
    /// It was overtaken by a push, and is on its way.
    Behind,
}

impl Inputs {
    /// What is kept of a push, and else nothing read yet; configurations are to be signed
    /// as `authority` says.
    pub fn new(authority: Authority, kept: Kept) -> Self {
        let pushed = kept.read(&authority);
        let mut inputs = Self { authority, kept, ..Self::default() };
        if let Some(sealed) = pushed {
            info!(generation = sealed.generation, "kept configuration read");
            inputs.put_in_force(sealed);
        }
        inputs
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

    /// Takes a configuration that was pushed, and keeps it. Returns whether it is another
    /// than the one in force, or a later one.
    ///
    /// # Errors
    /// It is older than the one in force, or another of the same generation; or it cannot
    /// be kept.
    pub fn push(&mut self, sealed: Sealed) -> Result<bool, Refusal> {
        let Sealed { digest, generation, .. } = &sealed;
        if let Some(in_force) = self.precedes(*generation, digest) {
            return Err(Refusal::Outdated { pushed: *generation, in_force });
        }
        let is_known = |known: &Configured| (&known.digest, known.generation) == (digest, Some(*generation));
        let is_new = !self.configured.as_ref().is_some_and(is_known);
        if is_new {
            // First, so that no process goes back to an earlier one.
            self.kept.write(&sealed).map_err(|error| Refusal::NotKept(error.to_string()))?;
            self.put_in_force(sealed);
            self.note_confirmation();
        }
        Ok(is_new)
    }

    fn put_in_force(&mut self, Sealed { config, digest, generation, .. }: Sealed) {
        self.seen = Some(digest.clone());
        self.pushed_generation = Some(generation);
        self.overtaken.clone_from(&self.mounted);
        self.config_fault = None;
        self.set(config, digest, Some(generation));
    }

    fn set(&mut self, config: Config, digest: String, generation: Option<u64>) {
        for note in &config.notes {
            info!("{note}");
        }
        self.configured = Some(Configured { config: Arc::new(config), digest, generation });
    }

    /// Whether the controller has named the configuration in force on this pod, or one
    /// before it while that was in force, so that it is no older one that was put back.
    pub fn is_confirmed(&self) -> bool {
        let Some(Configured { digest, generation, .. }) = &self.configured else { return false };
        let is_later = generation.zip(self.confirmed_generation).is_some_and(|(now, then)| now >= then);
        is_later || self.confirmed.as_ref() == Some(digest)
    }

    /// Reads the annotation, which pods of earlier releases do not mount.
    fn read_confirmed(&mut self, pod_info_dir: &Path) {
        let text = std::fs::read_to_string(pod_info_dir.join(names::CONFIRMED_FILE)).unwrap_or_default();
        self.confirmed = names::config_annotation(&text).map(|(digest, _)| digest.to_owned());
        self.note_confirmation();
    }

    fn note_confirmation(&mut self) {
        let known = self.configured.as_ref().filter(|known| Some(&known.digest) == self.confirmed.as_ref());
        if let Some(generation) = known.and_then(|known| known.generation) {
            self.confirmed_generation = Some(generation);
        }
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
            Ok(bytes) => self.set_config(&bytes, &dir),
            Err(error) => {
                self.config_fault = Some(Fault::ConfigMissing { path, why: error.to_string() });
                false
            }
        }
    }

    /// Takes the configuration `bytes`, whose seal is in `dir`.
    fn set_config(&mut self, bytes: &[u8], dir: &Path) -> bool {
        let seal = std::fs::read(dir.join(names::SEAL_KEY)).ok();
        let digest = names::digest(bytes);
        let mounted = format!("{digest}.{}", seal.as_deref().map(names::digest).unwrap_or_default());
        let changed = self.mounted.as_ref() != Some(&mounted);
        if self.overtaken.as_ref() == Some(&mounted) {
            self.config_fault = None;
            return changed;
        }
        (self.mounted, self.overtaken) = (Some(mounted), None);
        let generation = self.verify(dir, seal.as_deref(), bytes).map_err(Fault::from);
        let generation = match generation.and_then(|it| self.place(it, &digest)) {
            Ok(Place::Latest(generation)) => generation,
            Ok(Place::Behind) => {
                self.config_fault = None;
                return changed;
            }
            Err(fault) => {
                self.seen = None;
                self.config_fault = Some(fault);
                return changed;
            }
        };
        self.mounted_generation = generation;
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
                self.set(config, digest, generation);
                None
            }
            Err(invalid) => Some(Fault::ConfigInvalid(invalid)),
        };
        true
    }

    /// Checks the seal on the mounted configuration `bytes`. Returns its generation, if
    /// it has to have one.
    fn verify(&self, dir: &Path, seal: Option<&[u8]>, bytes: &[u8]) -> Result<Option<u64>, Unsealed> {
        if self.authority.trusted.is_empty() {
            return Ok(None);
        }
        let seal = self.authority.open(seal.ok_or(Unsealed::Missing)?)?;
        seal.verify(&self.authority.gateway, |part| match part {
            names::CONFIG_KEY => Some(bytes.to_vec()),
            part => std::fs::read(dir.join(Path::new(part).file_name()?)).ok(),
        })?;
        Ok(Some(seal.generation))
    }

    /// Refuses a mounted generation before the one in force, and another configuration
    /// of the same; but for one that a push has overtaken.
    fn place(&self, generation: Option<u64>, digest: &str) -> Result<Place, Fault> {
        let Some(mounted) = generation else { return Ok(Place::Latest(None)) };
        let Some(in_force) = self.precedes(mounted, digest) else { return Ok(Place::Latest(generation)) };
        let is_overtaken = self.pushed_generation.is_some_and(|pushed| mounted < pushed);
        let went_back = self.mounted_generation.is_some_and(|before| mounted < before);
        if is_overtaken && !went_back {
            return Ok(Place::Behind);
        }
        Err(Fault::ConfigOutdated { mounted, in_force })
    }

    /// The generation in force, if a configuration of this generation and digest is one
    /// before it, or another of the same.
    fn precedes(&self, generation: u64, digest: &str) -> Option<u64> {
        let known = self.configured.as_ref()?;
        let in_force = known.generation?;
        let is_earlier = generation < in_force || generation == in_force && known.digest != digest;
        is_earlier.then_some(in_force)
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
    use lb_svc_crds::seal::{PrivateKey, Seal};

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
        let mut inputs = Inputs::new(authority, Kept::default());
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
        let authority = Authority { gateway: "uid".into(), trusted: vec![key.public()] };
        let mut inputs = Inputs::new(authority, Kept::default());
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

    /// A gateway with the directory of its kept copy.
    struct Scene {
        key: PrivateKey,
        state: tempfile::TempDir,
        inputs: Inputs,
    }

    impl Scene {
        fn new() -> Self {
            let (key, state) = (PrivateKey::from_seed(&[1; 32]).unwrap(), tempfile::tempdir().unwrap());
            let inputs = Self::started(&key, state.path());
            Self { key, state, inputs }
        }

        fn started(key: &PrivateKey, state: &Path) -> Inputs {
            let authority = Authority { gateway: "uid".into(), trusted: vec![key.public()] };
            Inputs::new(authority, Kept::new(state.to_path_buf()))
        }

        /// The container is started again.
        fn restart(&mut self) {
            self.inputs = Self::started(&self.key, self.state.path());
        }

        fn seal(&self, generation: u64, address: u8) -> (String, Vec<u8>) {
            let (_, content) = sealed(address, None);
            (self.key.sign(&Seal::of_config("uid", generation, &content)), content)
        }

        fn mount(&mut self, generation: u64, address: u8) -> Vec<&'static str> {
            let (seal, _) = self.seal(generation, address);
            set(&mut self.inputs, sealed(address, Some(&seal)).0.path()).1
        }

        fn push(&mut self, generation: u64, address: u8) -> Result<bool, Refusal> {
            let (seal, content) = self.seal(generation, address);
            let sealed = Sealed::new(&self.inputs.authority, seal.into_bytes(), content).unwrap();
            self.inputs.push(sealed)
        }

        fn in_force(&self) -> (Option<u8>, Option<u64>) {
            (serves(&self.inputs), self.inputs.configured.as_ref().and_then(|known| known.generation))
        }
    }

    #[test]
    fn pushed_config_is_in_force_and_no_earlier_one_is_taken() {
        let mut scene = Scene::new();
        assert_eq!(scene.mount(5, 1), [""; 0]);
        assert_eq!(scene.push(6, 2), Ok(true));
        let digest = names::digest(&scene.seal(6, 2).1);
        assert_eq!((scene.in_force(), scene.inputs.seen.as_ref()), ((Some(2), Some(6)), Some(&digest)));
        assert_eq!(scene.push(6, 2), Ok(false), "the same again");
        let outdated = |pushed| Err(Refusal::Outdated { pushed, in_force: 6 });
        assert_eq!(scene.push(5, 1), outdated(5));
        assert_eq!(scene.push(6, 3), outdated(6), "another of the same generation");
        assert_eq!(scene.in_force(), (Some(2), Some(6)));
        assert_eq!(scene.push(7, 2), Ok(true), "signed anew");
        assert_eq!(scene.push(8, 1), Ok(true), "what was before, as of a backup, under a later generation");
        assert_eq!(scene.in_force(), (Some(1), Some(8)));
    }

    #[test]
    fn mounted_config_behind_a_pushed_one_is_passed_over() {
        let mut scene = Scene::new();
        scene.mount(5, 1);
        scene.push(8, 2).unwrap();
        let seen = scene.inputs.seen.clone();
        // As it was, and as the kubelet brings it from its cache.
        for generation in [5, 6, 7] {
            assert_eq!(scene.mount(generation, 1), [""; 0]);
            assert_eq!((scene.in_force(), &scene.inputs.seen), ((Some(2), Some(8)), &seen));
        }
        assert_eq!(scene.mount(8, 2), [""; 0], "it has caught up");
        assert_eq!(scene.mount(7, 1), ["ConfigOutdated"], "it was put back");
        assert_eq!((scene.in_force(), &scene.inputs.seen), ((Some(2), Some(8)), &None));
        assert_eq!(scene.mount(8, 3), ["ConfigOutdated"], "another of the same generation");
        assert_eq!(scene.mount(9, 3), [""; 0]);
        assert_eq!(scene.in_force(), (Some(3), Some(9)));
        assert_eq!(scene.push(8, 2), Err(Refusal::Outdated { pushed: 8, in_force: 9 }));
    }

    #[test]
    fn push_overtakes_a_mounted_config_that_is_refused() {
        let mut scene = Scene::new();
        scene.mount(5, 1);
        let (forged, _) = sealed(9, None);
        assert_eq!(set(&mut scene.inputs, forged.path()).1, ["ConfigUnsigned"]);
        assert_eq!(scene.inputs.seen, None);
        scene.push(6, 1).unwrap();
        let seen = scene.inputs.seen.clone();
        assert!(seen.is_some());
        assert_eq!(set(&mut scene.inputs, forged.path()).1, [""; 0], "it is the same file still");
        assert_eq!((scene.in_force(), &scene.inputs.seen), ((Some(1), Some(6)), &seen));
        assert_eq!(set(&mut scene.inputs, sealed(8, None).0.path()).1, ["ConfigUnsigned"], "another is news");
    }

    #[test]
    fn pushed_config_outlives_the_process() {
        let mut scene = Scene::new();
        scene.mount(5, 1);
        scene.push(6, 2).unwrap();
        scene.push(7, 3).unwrap();
        scene.restart();
        assert_eq!(scene.in_force(), (Some(3), Some(7)), "before anything is mounted");
        assert_eq!(scene.mount(5, 1), [""; 0]);
        assert_eq!(scene.in_force(), (Some(3), Some(7)));
        scene.restart();
        scene.mount(8, 4);
        assert_eq!(scene.in_force(), (Some(4), Some(8)), "a later one is mounted");
        let files = std::fs::read_dir(scene.state.path()).unwrap().map(|file| file.unwrap().file_name());
        assert_eq!(files.collect::<Vec<_>>(), ["lb-svc-pushed"], "replaced, and nothing is left beside it");
    }

    #[test]
    fn kept_copy_that_is_not_valid_is_ignored() {
        let mut scene = Scene::new();
        scene.push(6, 2).unwrap();
        let path = scene.state.path().join("lb-svc-pushed");
        let good = std::fs::read(&path).unwrap();
        let other = PrivateKey::from_seed(&[2; 32]).unwrap();
        let (_, content) = sealed(2, None);
        let foreign = other.sign(&Seal::of_config("uid", 9, &content));
        for bad in
            [&good[..good.len() - 1], b"", &[0; 3 << 20], &[foreign.as_bytes(), b"\n", &content].concat()[..]]
        {
            std::fs::write(&path, bad).unwrap();
            scene.restart();
            assert_eq!(scene.in_force(), (None, None));
            assert_eq!(scene.mount(5, 1), [""; 0]);
            assert_eq!(scene.in_force(), (Some(1), Some(5)));
        }
        std::fs::write(&path, good).unwrap();
        scene.restart();
        assert_eq!(scene.in_force(), (Some(2), Some(6)));
    }

    #[test]
    fn push_that_cannot_be_kept_is_refused() {
        let mut scene = Scene::new();
        scene.mount(5, 1);
        std::fs::remove_dir(scene.state.path()).unwrap();
        assert!(matches!(scene.push(6, 2), Err(Refusal::NotKept(_))));
        assert_eq!(scene.in_force(), (Some(1), Some(5)), "or the next process would go back");
        assert_eq!(scene.push(5, 1), Ok(false), "there is nothing to keep");
    }

    #[test]
    fn config_after_a_confirmed_one_is_confirmed() {
        let (mut scene, pod) = (Scene::new(), tempfile::tempdir().unwrap());
        scene.mount(5, 1);
        let digest = names::digest(&scene.seal(5, 1).1);
        scene.push(6, 2).unwrap();
        std::fs::write(pod.path().join(names::CONFIRMED_FILE), format!("{digest}.0")).unwrap();
        scene.inputs.read_confirmed(pod.path());
        assert!(!scene.inputs.is_confirmed(), "who hands it over need not be the controller");

        let mut scene = Scene::new();
        scene.mount(5, 1);
        scene.inputs.read_confirmed(pod.path());
        assert!(scene.inputs.is_confirmed());
        scene.push(6, 2).unwrap();
        assert!(scene.inputs.is_confirmed(), "it is no older one");
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
