//! Text that is handed over in files and on standard input, and where it is wrong.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::Context as _;

use super::Misuse;
use crate::event::JsonText;

/// Reads a file, or standard input for `-`: UTF-8 of at most `limit` bytes, without a byte order mark.
///
/// # Errors
/// [`Misuse`] when the text is longer, or is not UTF-8, with the place; and those of reading.
pub(super) fn read(path: &Path, limit: usize) -> anyhow::Result<String> {
    let reading = || format!("reading {}", name(path));
    let source: &mut dyn Read = if path.as_os_str() == "-" {
        &mut io::stdin()
    } else {
        &mut File::open(path).with_context(reading)?
    };
    let mut bytes = Vec::new();
    source.take(limit as u64 + 1).read_to_end(&mut bytes).with_context(reading)?;
    if bytes.len() > limit {
        return Err(Misuse(format!("{}: longer than {} KiB", name(path), limit / 1024)).into());
    }
    text(bytes).map_err(|problem| Misuse(format!("{}: {problem}", name(path))).into())
}

/// The JSON of an option, if there is one.
///
/// # Errors
/// [`Misuse`] with the option and the place of the mistake.
pub(super) fn json(option: &str, text: Option<&str>) -> Result<Option<JsonText>, Misuse> {
    text.map(|text| {
        serde_json::from_str(text).map_err(|error| Misuse(format!("{option}: {}", mistake(text, &error))))
    })
    .transpose()
}

/// How messages name it.
pub(super) fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is UTF-16; save it as UTF-8".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let (bytes, good) = (error.as_bytes(), error.utf8_error().valid_up_to());
        let byte = bytes.get(good).copied().unwrap_or_default();
        format!("{} is the byte {byte:#04x}, which is not UTF-8; save it as UTF-8", place(bytes, good))
    })?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

/// The line and the column, in characters, of a byte.
fn place(bytes: &[u8], at: usize) -> String {
    let before = &bytes[..at];
    let line = before.split(|&byte| byte == b'\n').count();
    let in_line = before.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    format!("line {line}, column {}", String::from_utf8_lossy(in_line).chars().count() + 1)
}

/// What is wrong with a text that is not the JSON that it should be, and where.
pub(super) fn mistake(text: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let (what, _) = message.rsplit_once(" at line ").unwrap_or((&message, ""));
    if error.line() == 0 {
        return message;
    }
    let start: usize = text.split_inclusive('\n').take(error.line() - 1).map(str::len).sum();
    let mut at = (start + error.column().saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let place = place(text.as_bytes(), at);
    match text[at..].chars().next() {
        Some(found) if error.is_syntax() => format!("{what} at {place}, where {found:?} is"),
        _ => format!("{what} at {place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_or_no_json_is_named_with_its_place() {
        assert_eq!(text(b"\xef\xbb\xbf{}".to_vec()).unwrap(), "{}");
        let wrong = text(b"{\n\"\xc3\xa4\": \"\xe4\"}".to_vec()).unwrap_err();
        assert_eq!(wrong, "line 2, column 7 is the byte 0xe4, which is not UTF-8; save it as UTF-8");
        assert!(text(b"\xff\xfe{\0".to_vec()).unwrap_err().contains("UTF-16"));
        let wrong = |text: &str| mistake(text, &serde_json::from_str::<serde_json::Value>(text).unwrap_err());
        assert_eq!(wrong("{\n  \"ä\": x}"), "expected value at line 2, column 8, where 'x' is");
        assert_eq!(wrong("\u{feff}{}"), "expected value at line 1, column 1, where '\\u{feff}' is");
        assert_eq!(wrong("{“a”: 1}"), "key must be a string at line 1, column 2, where '“' is");
        assert_eq!(wrong("{\"a\": 1"), "EOF while parsing an object at line 1, column 7");
        assert_eq!(wrong("[1]\n[2]"), "trailing characters at line 2, column 1, where '[' is");
    }
}
