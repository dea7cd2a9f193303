//! nftables tables of our own: programmed by nft(8), read by netlink.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use tracing::warn;

use crate::nfnetlink::{Ear, IPV4, Question, Socket, attributes, push};
use crate::tool::{self, RunError};

/// How often a table is read that changes while it is.
const READS: usize = 5;

/// Why a table is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nft, or the kernel by it, refuses.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The kernel does not tell.
    #[error("the kernel does not say what its nftables are: {0}")]
    Read(#[from] io::Error),
}

/// The failure that was told last, if there is one now: the same one again is no
/// news.
#[derive(Debug, Default)]
pub struct Told(Option<String>);

impl Told {
    /// Warns of a failure and of what is `lacking` by it, if that is news.
    pub fn tell(&mut self, lacking: &str, failure: Option<Error>) {
        let failure = failure.map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != self.0) {
            warn!("{lacking}: {error}");
        }
        self.0 = failure;
    }
}

/// What a table is before it is changed.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a, T> {
    /// What was made of this, and nothing else.
    Left(&'a T),
    /// Nothing, what another process left, or what others made of it.
    Found(&'a Held),
}

/// A table of ours, and what is known of it.
pub struct Table<T> {
    name: &'static str,
    known: Known<T>,
}

enum Known<T> {
    /// Not what was made of anything.
    Nothing,
    /// It was made from this by the transaction of this number, and how the
    /// kernel holds it was not looked at yet.
    Made(T, u32),
    /// It was made from this, and the kernel was seen to hold it so then.
    Seen(T, Held),
}

/// What makes a table what it is to be.
#[derive(Debug)]
pub struct Change<T> {
    wanted: T,
    /// For [`run`].
    pub script: String,
}

/// Has nft run this as one transaction, and returns its number.
///
/// # Errors
/// When nft or the kernel refuses; nothing is changed then.
pub async fn run(script: &str) -> Result<u32, Error> {
    let before = generation().await?;
    // Where something was deleted, the kernel lets nft end only when it has
    // waited for whoever may still be looking at that: what is new is in force
    // long before.
    let ear = Ear::open()?;
    tool::run_until("nft", &["-f", "-"], script, |nft| ear.transaction_of(nft)).await?;
    Ok(before.wrapping_add(1))
}

impl<T: PartialEq> Table<T> {
    /// The table of this name, `<family> <name>`.
    pub fn new(name: &'static str) -> Self {
        Self { name, known: Known::Nothing }
    }

    /// Makes the table what `wanted` says: has nft run, as one transaction, what
    /// `script` makes of what it is. With `suspect` that is looked at; without,
    /// it is taken to be as it was left. Returns whether anything was run.
    ///
    /// # Errors
    /// When nft or the kernel refuses; nothing is changed then.
    pub async fn ensure(
        &mut self,
        wanted: T,
        suspect: bool,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<bool, Error> {
        let runs = self.apply(wanted, suspect, script).await?;
        self.settle().await?;
        Ok(runs)
    }

    /// The same without a look at how the kernel holds it, which
    /// [`Self::settle`] makes up for.
    ///
    /// # Errors
    /// As of [`Self::ensure`].
    pub async fn apply(
        &mut self,
        wanted: T,
        suspect: bool,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<bool, Error> {
        let Some(change) = self.change(wanted, suspect, script).await? else { return Ok(false) };
        let by = run(&change.script).await?;
        self.made(change, by);
        Ok(true)
    }

    /// What has to be run for that, if anything has. The table is not known
    /// any more, until it was [`Self::made`].
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn change(
        &mut self,
        wanted: T,
        suspect: bool,
        script: impl FnOnce(Before<'_, T>) -> String,
    ) -> Result<Option<Change<T>>, Error> {
        self.settle().await?;
        let (from, now) = match std::mem::replace(&mut self.known, Known::Nothing) {
            Known::Seen(from, held) if !suspect => (Some(from), held),
            Known::Seen(from, held) => {
                let now = self.read().await?;
                (Some(from).filter(|_| held == now), now)
            }
            _ => (None, self.read().await?),
        };
        let script = match from {
            Some(from) if from == wanted => {
                self.known = Known::Seen(from, now);
                return Ok(None);
            }
            Some(from) => script(Before::Left(&from)),
            None => script(Before::Found(&now)),
        };
        if script.is_empty() {
            self.known = Known::Seen(wanted, now);
            return Ok(None);
        }
        Ok(Some(Change { wanted, script }))
    }

    /// It was changed, by the transaction of this number.
    pub fn made(&mut self, change: Change<T>, by: u32) {
        self.known = Known::Made(change.wanted, by);
    }

    /// Looks at how the kernel holds what was just made, to know it again. If
    /// others have changed anything since, it may be theirs, and is made anew
    /// when there is reason to look.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn settle(&mut self) -> Result<(), Error> {
        self.known = match std::mem::replace(&mut self.known, Known::Nothing) {
            Known::Made(from, made_by) => {
                let held = self.read().await?;
                if generation().await? == made_by { Known::Seen(from, held) } else { Known::Nothing }
            }
            known => known,
        };
        Ok(())
    }

    async fn read(&self) -> io::Result<Held> {
        let mut tries = READS;
        loop {
            tries -= 1;
            match read(self.name).await {
                // It was changed meanwhile, or what was to be read next is gone.
                Err(error)
                    if tries > 0
                        && matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::NotFound) => {}
                result => return result,
            }
        }
    }
}

/// How the kernel holds a table, but for what changes by itself: the values of
/// counters, and elements that come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What has to be removed by its name.
    pub names: Names,
    /// Of everything that it holds, in whatever order it is told.
    sum: u64,
}

/// The names of what is in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its chains.
    pub chains: Vec<String>,
    /// Its named counters.
    pub counters: Vec<String>,
}

impl Held {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}

/// The number of the transactions that there were.
async fn generation() -> io::Result<u32> {
    let question = Question { subsystem: NFTABLES, kind: NFT_MSG_GETGEN, family: IPV4, attributes: &[] };
    let mut id = 0;
    Socket::open()?.ask(question, |message| id = number(message, NFTA_GEN_ID)).await?;
    Ok(id)
}

/// Packets and bytes of the named counters of the table `<family> <name>`.
///
/// # Errors
/// When the kernel does not tell.
pub async fn counters(table: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    read_counters(&mut Socket::open()?, table).await
}

// linux/netfilter/nf_tables.h, nfnetlink.h
const NFTABLES: u16 = 10;
const NFPROTO_NETDEV: u8 = 5;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_GETGEN: u16 = 16;
const NFT_MSG_GETOBJ: u16 = 19;
const NFTA_GEN_ID: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// The family's number, and the table's own name.
fn parse(name: &str) -> (u8, &str) {
    match name.split_once(' ') {
        Some(("netdev", name)) => (NFPROTO_NETDEV, name),
        Some((_, name)) => (IPV4, name),
        None => (IPV4, name),
    }
}

fn value(message: &[u8], wanted: u16) -> &[u8] {
    attributes(message).find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default()
}

fn text(message: &[u8], kind: u16) -> String {
    String::from_utf8_lossy(value(message, kind)).trim_end_matches('\0').to_owned()
}

fn number(message: &[u8], kind: u16) -> u32 {
    value(message, kind).first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn push_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    push(message, kind, &[text.as_bytes(), b"\0"].concat());
}

async fn read(name: &str) -> io::Result<Held> {
    let (family, table) = parse(name);
    let mut socket = Socket::open()?;
    let mut held = Held::default();
    let all = |kind| Question { subsystem: NFTABLES, kind, family, attributes: &[] };

    let chain = |message: &[u8]| {
        if text(message, NFTA_CHAIN_TABLE) == table {
            let name = text(message, NFTA_CHAIN_NAME);
            let hook = [NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE].map(|kind| value(message, kind));
            held.add(("chain", &name, hook));
            held.names.chains.push(name);
        }
    };
    socket.dump(all(NFT_MSG_GETCHAIN), chain).await?;

    let mut of_table = Vec::new();
    push_text(&mut of_table, NFTA_RULE_TABLE, table);
    let rule = |message: &[u8]| {
        let expressions =
            attributes(value(message, NFTA_RULE_EXPRESSIONS)).map(|(_, expression)| {
                match text(expression, NFTA_EXPR_NAME).as_str() {
                    "counter" => &[],
                    _ => expression,
                }
            });
        let expressions: Vec<&[u8]> = expressions.collect();
        let place = [NFTA_RULE_CHAIN, NFTA_RULE_HANDLE].map(|kind| value(message, kind));
        held.add(("rule", place, expressions));
    };
    socket.dump(Question { attributes: &of_table, ..all(NFT_MSG_GETRULE) }, rule).await?;

    let mut steady = Vec::new();
    let set = |message: &[u8]| {
        if text(message, NFTA_SET_TABLE) == table {
            let name = text(message, NFTA_SET_NAME);
            let shape =
                [NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_DATA_TYPE].map(|kind| value(message, kind));
            held.add(("set", &name, shape));
            if number(message, NFTA_SET_FLAGS) & (NFT_SET_TIMEOUT | NFT_SET_EVAL) == 0 {
                steady.push(name);
            }
        }
    };
    socket.dump(all(NFT_MSG_GETSET), set).await?;
    for set in steady {
        let mut of_set = Vec::new();
        push_text(&mut of_set, NFTA_SET_ELEM_LIST_TABLE, table);
        push_text(&mut of_set, NFTA_SET_ELEM_LIST_SET, &set);
        let elements = |message: &[u8]| {
            let list = attributes(value(message, NFTA_SET_ELEM_LIST_ELEMENTS));
            list.for_each(|(_, element)| held.add(("element", &set, element)));
        };
        socket.dump(Question { attributes: &of_set, ..all(NFT_MSG_GETSETELEM) }, elements).await?;
    }

    for name in read_counters(&mut socket, name).await?.into_keys() {
        held.add(("counter", &name));
        held.names.counters.push(name);
    }
    Ok(held)
}

async fn read_counters(socket: &mut Socket, name: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let (family, table) = parse(name);
    let mut of_table = Vec::new();
    push_text(&mut of_table, NFTA_OBJ_TABLE, table);
    let mut counters = BTreeMap::new();
    let counter = |message: &[u8]| {
        if text(message, NFTA_OBJ_TABLE) == table && number(message, NFTA_OBJ_TYPE) == NFT_OBJECT_COUNTER {
            let data = value(message, NFTA_OBJ_DATA);
            let count = |kind| value(data, kind).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let counts = (count(NFTA_COUNTER_PACKETS), count(NFTA_COUNTER_BYTES));
            counters.insert(text(message, NFTA_OBJ_NAME), counts);
        }
    };
    let question = Question { subsystem: NFTABLES, kind: NFT_MSG_GETOBJ, family, attributes: &of_table };
    socket.dump(question, counter).await?;
    Ok(counters)
}
