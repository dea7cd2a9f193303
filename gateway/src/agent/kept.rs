//! The copy of the configuration that was last pushed. It outlives the process, for the
//! mounted file may be older for a minute, and no longer than the pod.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lb_svc_crds::{names, seal};
use tracing::warn;

use crate::config::sealed::{Authority, Sealed};

/// The most bytes of a copy: a seal, a line feed and a configuration.
const MAX: u64 = (seal::SEAL_MAX + 1 + names::CONFIG_MAP_MAX) as u64;

/// The copy, in a directory.
#[derive(Debug, Default)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// The copy in `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads the copy. One that is not valid is ignored, and said.
    pub fn read(&self, authority: &Authority) -> Option<Sealed> {
        let path = self.path();
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "kept configuration not read: the mounted one is used");
                return None;
            }
        };
        Sealed::from_bytes(authority, &bytes)
            .inspect_err(|refused| {
                warn!(path = %path.display(), "kept configuration ignored, {refused}: the mounted one is used");
            })
            .ok()
    }

    /// Replaces the copy: whoever reads it gets all of the earlier one, or of this.
    ///
    /// # Errors
    /// The directory does not exist, or is not writable or full.
    pub fn write(&self, sealed: &Sealed) -> io::Result<()> {
        let (path, new) = (self.path(), self.dir.join("lb-svc-pushed.new"));
        // Left by a process that was killed while it wrote.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&sealed.to_bytes())?;
        fs::rename(new, path)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("lb-svc-pushed")
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
