//! The API server: what is watched, read and written, and which controller
//! leads.

pub mod bounded;
pub mod client;
pub mod leader;
pub mod master_key;
pub mod read;
mod signing_keys;
pub mod watch;
pub mod write;
