//! Addresses and ranges as users write them: `10.0.0.1` or
//! `10.0.0.1..10.0.0.9`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a string is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Neither `a` nor `a..b`.
    #[error("{0:?} is neither an address nor a range <first>..<last>")]
    Shape(String),
    /// One bound is IPv4, the other IPv6.
    #[error("{0:?} mixes IPv4 and IPv6")]
    Mixed(String),
    /// The bounds are the wrong way round.
    #[error("{0:?} ends before it begins")]
    Reversed(String),
}

impl IpRange {
    /// From one bound to the other, both included, in whichever order they
    /// come. Both are of one family.
    pub fn between(a: IpAddr, b: IpAddr) -> Self {
        Self { first: a.min(b), last: a.max(b) }
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }
}

impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let address = |part: &str| part.parse::<IpAddr>().map_err(|_| RangeError::Shape(text.to_owned()));
        let (first, last) = match text.split_once("..") {
            Some((first, last)) => (address(first)?, address(last)?),
            None => {
                let only = address(text)?;
                (only, only)
            }
        };
        if first.is_ipv4() != last.is_ipv4() {
            return Err(RangeError::Mixed(text.to_owned()));
        }
        if first > last {
            return Err(RangeError::Reversed(text.to_owned()));
        }
        Ok(Self { first, last })
    }
}

/// As the status writes it: `a` or `a-b`.
impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, RangeError> {
        text.parse::<IpRange>().map(|range| range.to_string())
    }

    #[test]
    fn range_is_one_address_or_two_bounds() {
        assert_eq!(parse("10.0.0.1").unwrap(), "10.0.0.1");
        assert_eq!(parse("10.0.0.1..10.0.0.9").unwrap(), "10.0.0.1-10.0.0.9");
        assert_eq!(parse("10.0.0.1..10.0.0.1").unwrap(), "10.0.0.1");
        assert_eq!(parse("2001:db8::1..2001:db8::f").unwrap(), "2001:db8::1-2001:db8::f");
    }

    #[test]
    fn malformed_range_says_why() {
        for text in [
            "",
            "a..b..c",
            "10.0.0.1..",
            "10.16.1..10.16.10",
            "10.16.0.0/16",
            "host",
            "10.0.0.261",
            "0..20,23",
        ] {
            assert_eq!(parse(text), Err(RangeError::Shape(text.to_owned())), "{text}");
        }
        assert!(matches!(parse("10.0.0.2..10.0.0.1"), Err(RangeError::Reversed(_))));
        assert!(matches!(parse("10.0.0.2..2001:db8::1"), Err(RangeError::Mixed(_))));
    }
}
