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
