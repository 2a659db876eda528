//! Writes to standard output: tables for people, one JSON object a line for programs; and notes to standard
//! error. No other file writes there.

use std::{
    fmt,
    io::{self, BufRead as _, Write, stderr, stdout},
};

use serde::Serialize;

pub(super) use crate::event::harmless::escaped;
use crate::event::harmless::escaped_json;

/// Prints a text unchanged.
pub(super) fn raw(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints JSON that is written already, with an end of line.
pub(super) fn written_json(text: &str) -> io::Result<()> {
    raw(&format!("{}\n", escaped_json(text)))
}

/// Prints a line of text, which may hold what strangers wrote.
pub(super) fn line(text: &str) -> io::Result<()> {
    raw(&format!("{}\n", escaped(text)))
}

/// Writes a note to standard error, formatted like `format!`. A reader that is gone or a disk that is full
/// ends no command.
macro_rules! note {
    ($($text:tt)*) => { $crate::cli::print::write_note(format_args!($($text)*)) };
}
pub(super) use note;

/// Writes a line to standard error; see [`note!`].
pub(super) fn write_note(text: fmt::Arguments<'_>) {
    write_prompt(format_args!("{text}\n"));
}

/// Writes a text to standard error, without an end of line.
pub(super) fn write_prompt(text: fmt::Arguments<'_>) {
    // One write for the whole text: lines of several threads do not mix.
    let text: Vec<String> = text.to_string().split('\n').map(escaped).collect();
    let _ = stderr().write_all(text.join("\n").as_bytes());
}

/// Replaces the last line on the terminal that is standard error.
pub(super) fn write_status(text: &str) {
    let _ = stderr().write_all(format!("\r{}\u{1b}[K", escaped(text)).as_bytes());
}

/// Prints one JSON object a line.
pub(super) fn json<T: Serialize>(rows: impl IntoIterator<Item = T>) -> io::Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(&row)?);
        text.push('\n');
    }
    raw(&escaped_json(&text))
}

/// Prints a table with names of columns; nothing if there are no rows.
pub(super) fn table<const N: usize>(names: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    // Values come from users: control characters must not reach the terminal, and each row must stay one
    // line.
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let mut widths = names.map(|name| name.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&names.map(ToOwned::to_owned)).chain(&rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    raw(&text)
}

/// Prints names and values, one of them a line; those without a value are left out.
pub(super) fn fields(rows: &[(&str, String)]) -> io::Result<()> {
    let rows: Vec<_> = rows.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let text: String =
        rows.iter().map(|(name, value)| format!("{name:width$}  {}\n", escaped(value))).collect();
    raw(&text)
}

/// Text of what may be missing, empty if it is.
pub(super) fn or_empty<T: fmt::Display>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Asks on the terminal, and says whether the answer is yes.
pub(super) fn confirmed(question: &str) -> io::Result<bool> {
    write_prompt(format_args!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A count with its noun: `1 event`, `2 events`.
pub(super) fn counted(count: i64, one: &str) -> String {
    match one.strip_suffix("ry") {
        _ if count == 1 => format!("1 {one}"),
        Some(stem) => format!("{count} {stem}ries"),
        None => format!("{count} {one}s"),
    }
}
