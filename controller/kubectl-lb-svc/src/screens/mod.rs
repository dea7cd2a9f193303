//! The screens: each a pure function of what is seen.

mod check;
mod drain;
mod gateways;
mod services;
mod status;
mod subnets;
mod trace;

pub use check::check;
pub use drain::drain;
pub use gateways::gateways;
pub use services::services;
pub use status::status;
pub use subnets::subnets;
pub use trace::trace;
