//! nftables tables of our own: programmed by nft(8), read over netlink.
//!
//! | File | Holds |
//! |---|---|
//! | [`table`] | a table, what is known about it, and how it is changed |
//! | [`transaction`] | running a script as one transaction |
//! | [`dump`] | reading a table's contents and counters |
//! | [`log_once`] | logging a repeated failure once |

pub mod dump;
pub mod log_once;
pub mod table;
pub mod transaction;
