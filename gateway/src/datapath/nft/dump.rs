//! Reading a table from the kernel: its contents as a fingerprint, and its
//! counters.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use crate::datapath::nfnetlink::{IPV4, IPV6, Request, Socket, attributes, push};

/// How often to read a table that changes while it is read.
const READS: usize = 5;

/// The contents of a table as the kernel holds it, without what changes by itself:
/// the values of counters, and the elements of sets that packets update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The objects that have to be removed by name.
    pub names: Names,
    /// Fingerprint of all objects, independent of their order.
    sum: u64,
}

/// The names of a table's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its chains.
    pub chains: Vec<String>,
    /// Its named counters.
    pub counters: Vec<String>,
}

impl Contents {
    /// Whether the table has no objects, or does not exist.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, object: impl Hash) {
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}

/// Reads the table `<family> <name>`.
///
/// # Errors
/// If the kernel does not answer, or the table keeps changing.
pub async fn read(table: &str) -> io::Result<Contents> {
    let mut tries = READS;
    loop {
        tries -= 1;
        match read_once(table).await {
            // The table was changed meanwhile, or the next object was removed.
            Err(error)
                if tries > 0
                    && matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::NotFound) => {}
            result => return result,
        }
    }
}

/// Packets and bytes of the named counters of the table `<family> <name>`.
///
/// # Errors
/// If the kernel does not answer.
pub async fn counters(table: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    read_counters(&mut Socket::open()?, table).await
}

// linux/netfilter/nf_tables.h, nfnetlink.h
pub(super) const NFTABLES: u16 = 10;
const NFPROTO_NETDEV: u8 = 5;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_GETOBJ: u16 = 19;
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

/// The number of the family in `<family> <name>`, and the table's own name.
fn parse(name: &str) -> (u8, &str) {
    match name.split_once(' ') {
        Some(("netdev", name)) => (NFPROTO_NETDEV, name),
        Some(("ip6", name)) => (IPV6, name),
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

pub(super) fn number(message: &[u8], kind: u16) -> u32 {
    value(message, kind).first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn push_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    push(message, kind, &[text.as_bytes(), b"\0"].concat());
}

async fn read_once(name: &str) -> io::Result<Contents> {
    let (family, table) = parse(name);
    let mut socket = Socket::open()?;
    let mut contents = Contents::default();
    let all = |kind| Request { subsystem: NFTABLES, kind, family, attributes: &[] };

    let chain = |message: &[u8]| {
        if text(message, NFTA_CHAIN_TABLE) == table {
            let name = text(message, NFTA_CHAIN_NAME);
            let hook = [NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE].map(|kind| value(message, kind));
            contents.add(("chain", &name, hook));
            contents.names.chains.push(name);
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
        let position = [NFTA_RULE_CHAIN, NFTA_RULE_HANDLE].map(|kind| value(message, kind));
        contents.add(("rule", position, expressions));
    };
    socket.dump(Request { attributes: &of_table, ..all(NFT_MSG_GETRULE) }, rule).await?;

    let mut static_sets = Vec::new();
    let set = |message: &[u8]| {
        if text(message, NFTA_SET_TABLE) == table {
            let name = text(message, NFTA_SET_NAME);
            let shape =
                [NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_DATA_TYPE].map(|kind| value(message, kind));
            contents.add(("set", &name, shape));
            if number(message, NFTA_SET_FLAGS) & (NFT_SET_TIMEOUT | NFT_SET_EVAL) == 0 {
                static_sets.push(name);
            }
        }
    };
    socket.dump(all(NFT_MSG_GETSET), set).await?;
    for set in static_sets {
        let mut of_set = Vec::new();
        push_text(&mut of_set, NFTA_SET_ELEM_LIST_TABLE, table);
        push_text(&mut of_set, NFTA_SET_ELEM_LIST_SET, &set);
        let elements = |message: &[u8]| {
            let list = attributes(value(message, NFTA_SET_ELEM_LIST_ELEMENTS));
            list.for_each(|(_, element)| contents.add(("element", &set, element)));
        };
        socket.dump(Request { attributes: &of_set, ..all(NFT_MSG_GETSETELEM) }, elements).await?;
    }

    for name in read_counters(&mut socket, name).await?.into_keys() {
        contents.add(("counter", &name));
        contents.names.counters.push(name);
    }
    Ok(contents)
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
    let request = Request { subsystem: NFTABLES, kind: NFT_MSG_GETOBJ, family, attributes: &of_table };
    socket.dump(request, counter).await?;
    Ok(counters)
}
