//! Running an nft(8) script as one transaction.

use std::io;

use crate::datapath::command::{self, RunError};
use crate::datapath::nfnetlink::{IPV4, Request, Socket, TransactionListener};

use super::dump::{NFTABLES, number};

const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;

/// Why a table could not be programmed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nft, or the kernel by it, refuses.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The kernel does not answer a dump.
    #[error("the kernel does not say what its nftables are: {0}")]
    Read(#[from] io::Error),
}

impl Error {
    /// Whether there is no nft, or no nf_tables in the kernel: then nothing can have been
    /// programmed by it. Any other error says nothing of what there is.
    pub fn means_no_nftables(&self) -> bool {
        match self {
            Self::Run(error) => error.is_missing(),
            Self::Read(error) => error.raw_os_error() == Some(nix::libc::EINVAL),
        }
    }
}

/// Runs the script as one transaction, and returns the kernel's generation after
/// it. Returns when the transaction is committed, which nft may outlive: after
/// deletions the kernel lets nft end only when nothing uses the deleted objects
/// any more.
///
/// # Errors
/// If nft or the kernel refuses; nothing is changed then.
pub async fn run(script: &str) -> Result<u32, Error> {
    let before = generation().await?;
    let listener = TransactionListener::open()?;
    command::run_until("nft", &["-f", "-"], script, |process| listener.committed_by(process)).await?;
    Ok(before.wrapping_add(1))
}

/// The kernel's generation of nftables: the number of transactions so far.
///
/// # Errors
/// If the kernel does not answer.
pub async fn generation() -> io::Result<u32> {
    let request = Request { subsystem: NFTABLES, kind: NFT_MSG_GETGEN, family: IPV4, attributes: &[] };
    let mut id = 0;
    Socket::open()?.request(request, |message| id = number(message, NFTA_GEN_ID)).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn r44_failure_is_not_taken_for_an_absent_nftables() {
        let start = |code| RunError::Start { program: "nft", error: io::Error::from_raw_os_error(code) };
        let read = |code| Error::Read(io::Error::from_raw_os_error(code));
        assert!(Error::Run(start(libc::ENOENT)).means_no_nftables());
        assert!(read(libc::EINVAL).means_no_nftables());
        let refused = RunError::Failed { program: "nft", output: String::new() };
        for error in [start(libc::EAGAIN), RunError::Slow { program: "nft" }, refused].map(Error::Run) {
            assert!(!error.means_no_nftables(), "{error}");
        }
        assert!(!read(libc::ENOBUFS).means_no_nftables());
    }
}
