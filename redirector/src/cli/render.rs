//! Rows to a table, JSON or YAML. Nothing here knows the kernel: rows are loaded, typed and
//! sorted before they come here.

use std::fmt::Write as _;
use std::io::Write;

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// One line of a table, and one object of the JSON array.
pub trait Row: Serialize {
    /// The columns' headings. One that starts with `>` is aligned to the right.
    fn headings() -> Vec<&'static str>;

    /// The columns' texts, as many as headings.
    fn cells(&self) -> Vec<String>;
}

/// Prints rows. `none` is said on stderr when there are none to show in a table.
///
/// # Errors
///
/// If stdout cannot be written.
pub fn print_rows<R: Row>(format: Format, rows: &[R], none: &str) -> anyhow::Result<()> {
    if format == Format::Table && rows.is_empty() {
        say(none);
        return Ok(());
    }
    match format {
        Format::Table => print(&table(rows)),
        Format::Json | Format::Yaml => print_document(format, &rows, String::new),
    }
}

/// Prints one document: as data, or as the text that `text` makes for people.
///
/// # Errors
///
/// If stdout cannot be written.
pub fn print_document<T: Serialize>(
    format: Format,
    document: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => print(&text()),
        Format::Json => print(&(serde_json::to_string_pretty(document)? + "\n")),
        Format::Yaml => print(&serde_saphyr::to_string(document)?),
    }
}

/// Writes text to stdout, all of it.
///
/// # Errors
///
/// If stdout cannot be written; a reader that went away is such an error, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Says something on stderr. That nobody listens there is no failure of ours.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Rows in columns without borders, as kubectl prints them.
#[must_use]
pub fn table<R: Row>(rows: &[R]) -> String {
    columns(&R::headings(), rows.iter().map(Row::cells))
}

/// Columns without borders. A heading that starts with `>` is aligned to the right.
#[must_use]
pub fn columns(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let right =
        |column: usize| headings.get(column).is_some_and(|heading| heading.starts_with('>'));
    let aligned = |column: usize, text: &str| {
        let cell = Cell::new(if text.is_empty() { "-" } else { text });
        if right(column) { cell.set_alignment(CellAlignment::Right) } else { cell }
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(
        headings
            .iter()
            .enumerate()
            .map(|(column, heading)| aligned(column, heading.trim_start_matches('>'))),
    );
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(column, text)| aligned(column, text)));
    }
    let mut text = String::new();
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `Name:  value` lines, the values in one column.
#[must_use]
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in fields {
        let value = if value.is_empty() { "-" } else { value };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:width$}  {value}", format!("{name}:"));
    }
    text
}

/// A duration as kubectl shows ages: `42s`, `3m12s`, `5h40m`, `3d7h`, `28d`.
#[must_use]
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large: u64, unit: char, small: u64, small_unit: char| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        pair(days, 'd', hours % 24, 'h')
    } else {
        format!("{days}d")
    }
}

/// Bytes in binary units: `512B`, `1.5KiB`, `20MiB`.
#[must_use]
pub fn bytes(number: u64) -> String {
    scaled(number, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// A number of things in decimal units: `950`, `12.3k`, `4.0M`.
#[must_use]
pub fn count(number: u64) -> String {
    if number < 100_000 {
        return number.to_string();
    }
    scaled(number, 1000, &["", "k", "M", "G", "T", "P"])
}

fn scaled(number: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while number / divisor >= base && unit + 1 < units.len() {
        divisor = divisor.saturating_mul(base);
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    let whole = number / divisor;
    if unit == 0 || whole >= 10 {
        return format!("{whole}{name}");
    }
    let tenth = (number % divisor) * 10 / divisor;
    format!("{whole}.{tenth}{name}")
}

/// The word that JSON has for a value of an enum.
#[must_use]
pub fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Some of a list for a column, and how many more there are.
#[must_use]
pub fn some_of(texts: &[String], at_most: usize) -> String {
    if texts.len() <= at_most {
        return texts.join(",");
    }
    let shown = texts.get(..at_most).unwrap_or_default();
    format!("{} +{} more", shown.join(","), texts.len() - at_most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Fruit {
        name: &'static str,
        number: u64,
    }

    impl Row for Fruit {
        fn headings() -> Vec<&'static str> {
            vec!["NAME", ">NUMBER", "NOTE"]
        }

        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), self.number.to_string(), String::new()]
        }
    }

    const FRUIT: [Fruit; 2] =
        [Fruit { name: "pear", number: 7 }, Fruit { name: "watermelon", number: 12_345_678 }];

    #[test]
    fn columns_are_aligned_without_borders() {
        let expected = "\
NAME          NUMBER  NOTE
pear               7  -
watermelon  12345678  -
";
        assert_eq!(table(&FRUIT), expected);
    }

    #[test]
    fn a_table_without_rows_is_its_heading() {
        assert_eq!(table::<Fruit>(&[]), "NAME  NUMBER  NOTE\n");
    }

    #[test]
    fn values_of_fields_stand_in_one_column() {
        let text = fields(&[("Name", "web".to_owned()), ("Affinity", String::new())]);
        assert_eq!(text, "Name:      web\nAffinity:  -\n");
    }

    #[test]
    fn ages_are_as_kubectl_shows_them() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (20_400, "5h40m"),
            (86_400, "24h"),
            (285_000, "3d7h"),
            (2_419_200, "28d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(age(seconds), expected, "{seconds} s");
        }
    }

    #[test]
    fn units_keep_two_digits() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5KiB");
        assert_eq!(bytes(20 << 20), "20MiB");
        assert_eq!(bytes(u64::MAX), "16383PiB");
        assert_eq!(count(99_999), "99999");
        assert_eq!(count(123_456), "123k");
        assert_eq!(count(4_000_000), "4.0M");
    }

    #[test]
    fn long_lists_are_cut() {
        let list: Vec<_> = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(some_of(&list, 3), "a,b,c");
        assert_eq!(some_of(&list, 1), "a +2 more");
    }
}
