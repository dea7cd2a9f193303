//! Screens as text and as JSON.
//!
//! What tenants wrote reaches a terminal by here only: bounded, and with every
//! character escaped that a terminal could take for a command or that hides or
//! reorders others.

use lb_svc_crds::bounded::cut;
use serde_json::{Map, Value, json};

use crate::screen::{Cell, Screen, Table};

/// The most bytes of one text that are shown.
const TEXT_MAX: usize = 1024;
/// Between two columns, as kubectl has it.
const GAP: &str = "   ";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// A screen as text; with `colours`, what is wrong is red.
pub fn text(screen: &Screen, colours: bool) -> String {
    let mut parts = Vec::new();
    if !screen.trouble.is_empty() {
        let lines = screen.trouble.iter().map(|line| paint(&shown(line), colours));
        parts.push(listed("Trouble:", lines));
    }
    let is_titled = screen.tables.len() > 1;
    parts.extend(screen.tables.iter().map(|table| self::table(table, is_titled, colours)));
    if !screen.unseen.is_empty() {
        parts.push(listed("Not seen:", screen.unseen.iter().map(|line| shown(line))));
    }
    parts.join("\n")
}

/// A screen as JSON.
pub fn json(screen: &Screen) -> String {
    let rows = |table: &Table| {
        let row = |cells: &Vec<Cell>| {
            let names = table.columns.iter().map(|name| (*name).to_owned());
            Value::Object(names.zip(cells.iter().map(|cell| cell.value.clone())).collect())
        };
        Value::Array(table.rows.iter().map(row).collect())
    };
    let tables: Map<String, Value> =
        screen.tables.iter().map(|table| (table.name.to_owned(), rows(table))).collect();
    let mut all = Map::from_iter([
        ("command".to_owned(), json!(screen.name)),
        ("trouble".to_owned(), json!(screen.trouble)),
    ]);
    all.extend(tables);
    all.insert("notSeen".to_owned(), json!(screen.unseen));
    // Line breaks between the values are the only ones: those within are escaped.
    let text = format!("{:#}\n", Value::Object(all));
    text.split_inclusive('\n').map(|line| format!("{}\n", escaped(line.trim_end_matches('\n')))).collect()
}

fn listed(title: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("  {line}\n")).collect();
    format!("{title}\n{lines}")
}

fn table(table: &Table, is_titled: bool, colours: bool) -> String {
    let title = if is_titled { format!("{}\n", heading(table.name)) } else { String::new() };
    if table.rows.is_empty() {
        return format!("{title}No {} found.\n", words(table.name));
    }
    let rows: Vec<Vec<String>> =
        table.rows.iter().map(|row| row.iter().map(|cell| shown(&cell.text)).collect()).collect();
    let headings: Vec<String> = table.columns.iter().map(|name| words(name).to_uppercase()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&headings]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let line = |cells: &[String], bad: &dyn Fn(usize) -> bool| {
        let last = cells.len().saturating_sub(1);
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let padding = if column == last { 0 } else { widths[column] - cell.chars().count() };
            format!("{}{}", paint(cell, colours && bad(column)), " ".repeat(padding))
        });
        cells.collect::<Vec<_>>().join(GAP) + "\n"
    };
    let body: String = rows
        .iter()
        .zip(&table.rows)
        .map(|(row, cells)| line(row, &|column| cells.get(column).is_some_and(|cell| cell.bad)))
        .collect();
    format!("{title}{}{body}", line(&headings, &|_| false))
}

/// A name of JSON (camelCase) as words.
fn words(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

fn heading(name: &str) -> String {
    let words = words(name);
    let mut chars = words.chars();
    chars
        .next()
        .map_or_else(String::new, |first| format!("{}{}:", first.to_ascii_uppercase(), chars.as_str()))
}

fn paint(text: &str, red: bool) -> String {
    if red { format!("{RED}{text}{PLAIN}") } else { text.to_owned() }
}

/// What is shown of a text that anyone may have written.
pub fn shown(text: &str) -> String {
    escaped(&cut(text, TEXT_MAX))
}

/// The text without characters that a terminal does not print as they are. The form
/// is that of JSON, in which both text and JSON can have it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printed(c) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

/// Whether a terminal prints the character, and nothing but it: no control
/// character, no line or paragraph separator, none that changes the direction of
/// others, is invisible or a tag (Unicode categories Cc, Cf, Zl and Zp, as far as they
/// are in use).
fn is_printed(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\r\n\u{9b}31m\u{202e}\u{e0041}\u{7f}ä";
    const HARMLESS: &str = "a\\u001b[2J\\u000d\\u000a\\u009b31m\\u202e\\udb40\\udc41\\u007fä";

    fn screen(text: &str) -> Screen {
        let mut table = Table::new("services", &["name", "lastReason"]);
        table.rows.push(vec![text.into(), Cell::none().bad_if(true)]);
        Screen {
            trouble: vec![text.to_owned()],
            tables: vec![table],
            unseen: vec![text.to_owned()],
            ..Screen::new("test")
        }
    }

    #[test]
    fn text_that_a_tenant_wrote_is_escaped_everywhere() {
        let shown = text(&screen(HOSTILE), false);
        assert_eq!(shown.matches(HARMLESS).count(), 3, "{shown:?}");
        assert!(shown.chars().all(|c| c == '\n' || is_printed(c)), "{shown:?}");
    }

    #[test]
    fn json_that_a_tenant_wrote_is_escaped_and_reads_back() {
        let shown = json(&screen(HOSTILE));
        assert!(shown.chars().all(|c| c == '\n' || is_printed(c)), "{shown:?}");
        let read: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read["services"][0], json!({ "name": HOSTILE, "lastReason": null }));
        assert_eq!((&read["trouble"][0], &read["notSeen"][0]), (&json!(HOSTILE), &json!(HOSTILE)));
    }

    #[test]
    fn long_text_is_cut() {
        let shown = text(&screen(&"x".repeat(100_000)), false);
        assert!(shown.len() < 5 * TEXT_MAX, "{} bytes", shown.len());
    }

    #[test]
    fn colours_are_only_where_they_are_asked_for() {
        assert!(!text(&screen("web"), false).contains('\x1b'));
        let coloured = text(&screen("web"), true);
        assert!(coloured.contains("\x1b[31mweb\x1b[0m\n") && coloured.contains("\x1b[31m-\x1b[0m\n"));
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut wide = screen("web");
        wide.tables[0].rows.push(vec!["a-longer-name".into(), "x".into()]);
        wide.trouble.clear();
        wide.unseen.clear();
        assert_eq!(text(&wide, false), "NAME            LAST REASON\nweb             -\na-longer-name   x\n");
    }
}
