//! What a command has to say, before it is text or JSON.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// All that a command has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Screen {
    /// The command.
    pub name: &'static str,
    /// What is wrong, the worst first.
    pub trouble: Vec<String>,
    /// Whether trouble is the command's business, and so its exit code.
    pub judges: bool,
    /// What there is.
    pub tables: Vec<Table>,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

impl Screen {
    /// An empty screen of a command.
    pub fn new(name: &'static str) -> Self {
        Self { name, trouble: Vec::new(), judges: true, tables: Vec::new(), unseen: Vec::new() }
    }

    /// Whether the command is to fail.
    pub fn fails(&self) -> bool {
        self.judges && !self.trouble.is_empty()
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What its rows are; its key in JSON.
    pub name: &'static str,
    /// The columns' names in JSON; in text they are upper case, with spaces for dashes.
    pub columns: &'static [&'static str],
    /// As many cells in each as there are columns.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, rows: Vec::new() }
    }
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// As text.
    pub text: String,
    /// As JSON.
    pub value: Value,
    /// Whether it is about something that is wrong.
    pub bad: bool,
}

impl Cell {
    /// Nothing, which text shows as a dash.
    pub fn none() -> Self {
        Self { text: "-".to_owned(), value: Value::Null, bad: false }
    }

    /// A text, or nothing.
    pub fn some(text: Option<impl Into<String>>) -> Self {
        text.map_or_else(Self::none, |text| Self::from(text.into()))
    }

    /// How long ago something was: text shows it as kubectl does, JSON the time itself.
    pub fn since(time: Option<Timestamp>, now: Timestamp) -> Self {
        time.map_or_else(Self::none, |time| Self {
            text: age(now.duration_since(time)),
            value: time.to_string().into(),
            bad: false,
        })
    }

    /// The same cell in a row that goes on with the one before: text leaves it out.
    pub fn continued(self) -> Self {
        Self { text: String::new(), ..self }
    }

    /// The same cell, about something wrong where `bad`.
    pub fn bad_if(self, bad: bool) -> Self {
        Self { bad, ..self }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        match text.is_empty() {
            true => Self::none(),
            false => Self { value: text.clone().into(), text, bad: false },
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self { text: number.to_string(), value: number.into(), bad: false }
    }
}

/// A duration in one unit or two, as kubectl writes ages.
pub fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (seconds, seconds % 60) {
        (..120, _) => format!("{seconds}s"),
        (120..600, rest @ 1..) => format!("{minutes}m{rest}s"),
        (120..10_800, _) => format!("{minutes}m"),
        (10_800..172_800, _) => format!("{hours}h"),
        (172_800.., _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_written_as_kubectl_does() {
        let of = |seconds| age(SignedDuration::from_secs(seconds));
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (601, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (172_800, "2d"),
        ] {
            assert_eq!(of(seconds), expected, "{seconds}");
        }
    }
}
