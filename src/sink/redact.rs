//! Removes secrets from foreign text: also in the encodings in which programs print what they were sent, in
//! another case, and parts of them that are long enough.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use secrecy::{ExposeSecret, SecretString};

/// Bytes of a part that is removed. Shorter secrets are removed as a whole.
const PART: usize = 8;
/// Digits of a part in hexadecimal.
const HEX_PART: usize = 2 * PART;
/// What stands in place of a secret.
const INSTEAD: &str = "[redacted]";

/// Knows secrets by the hashes of their parts.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    hasher: RandomState,
    /// The hashes of parts, by their length.
    parts: BTreeMap<usize, HashSet<u64>>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

impl Redactor {
    /// Adds a secret, and its words: of `Bearer TOKEN` only the token may come back.
    pub(crate) fn add(&mut self, secret: &SecretString) {
        let text = secret.expose_secret();
        let words = text.split_whitespace().filter(|word| word.len() >= PART);
        for text in std::iter::once(text).chain(words) {
            self.add_bytes(text.as_bytes());
        }
        if let Some(key) = text.split_once("whsec_").and_then(|(_, key)| {
            STANDARD_NO_PAD.decode(key.trim_end_matches('=')).ok().filter(|key| key.len() >= PART)
        }) {
            self.add_encoded(&key);
        }
    }

    fn add_bytes(&mut self, secret: &[u8]) {
        self.add_parts(secret, PART);
        self.add_encoded(secret);
    }

    fn add_encoded(&mut self, secret: &[u8]) {
        if secret.len() < PART {
            return;
        }
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        self.add_parts(hex.as_bytes(), HEX_PART);
        // Inside a longer text base64 may begin at any of three places; letters that depend on what stands
        // beside it are left out.
        for before in 0..3 {
            let shifted = [&b"\0\0"[..before], secret].concat();
            for encoded in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
                let first = [0, 2, 3][before];
                let last = encoded.len() - usize::from(!shifted.len().is_multiple_of(3));
                self.add_parts(&encoded.as_bytes()[first..last], PART);
            }
        }
    }

    fn add_parts(&mut self, text: &[u8], length: usize) {
        let text = text.to_ascii_lowercase();
        let length = length.min(text.len());
        if length > 0 {
            let hashes: Vec<u64> = text.windows(length).map(|part| self.hasher.hash_one(part)).collect();
            self.parts.entry(length).or_default().extend(hashes);
        }
    }

    /// The text without secrets. `is_cut`: it is the beginning of a longer text, so its end may be the
    /// beginning of a secret.
    pub(crate) fn redact(&self, text: &str, is_cut: bool) -> String {
        let raw: Vec<(u8, Range<usize>)> =
            text.bytes().enumerate().map(|(at, byte)| (byte, at..at + 1)).collect();
        let mut spans = self.spans(&raw);
        spans.extend(self.spans(&decoded(text)));
        let mut kept = String::with_capacity(text.len());
        let mut at = 0;
        for run in runs(spans) {
            let run = text.floor_char_boundary(run.start)..text.ceil_char_boundary(run.end);
            // White space around words of a secret stays.
            let end = run.start + text[run.clone()].trim_end().len();
            let start = end - text[run.start..end].trim_start().len();
            kept.push_str(&text[at.min(start)..start]);
            kept.push_str(INSTEAD);
            at = end;
        }
        let mut rest = &text[at.min(text.len())..];
        if is_cut && !self.parts.is_empty() {
            rest = &rest[..rest.floor_char_boundary(rest.len().saturating_sub(PART - 1))];
        }
        kept.push_str(rest);
        kept
    }

    /// Where parts of secrets stand in the text from which these bytes come.
    fn spans(&self, bytes: &[(u8, Range<usize>)]) -> Vec<Range<usize>> {
        let lower: Vec<u8> = bytes.iter().map(|(byte, _)| byte.to_ascii_lowercase()).collect();
        let mut spans = Vec::new();
        for (length, hashes) in &self.parts {
            for (at, part) in lower.windows(*length).enumerate() {
                if hashes.contains(&self.hasher.hash_one(part)) {
                    spans.push(bytes[at].1.start..bytes[at + length - 1].1.end);
                }
            }
        }
        spans
    }
}

/// These spans, those that touch each other as one.
fn runs(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_by_key(|span| span.start);
    let mut runs: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match runs.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => runs.push(span),
        }
    }
    runs
}

/// The bytes that are meant by the escapes of JSON, URLs and HTML, and where they stand.
fn decoded(text: &str) -> Vec<(u8, Range<usize>)> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let (meant, length) = escape(&text.as_bytes()[at..]).unwrap_or((Meant::Byte(text.as_bytes()[at]), 1));
        let place = at..at + length;
        match meant {
            Meant::Byte(byte) => bytes.push((byte, place)),
            Meant::Letter(letter) => {
                bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes().map(|byte| (byte, place.clone())));
            }
        }
        at += length;
    }
    bytes
}

enum Meant {
    Byte(u8),
    Letter(char),
}

/// What an escape at the beginning means, and its length.
fn escape(text: &[u8]) -> Option<(Meant, usize)> {
    let number = |digits: &[u8], radix| u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok();
    let byte = |digits: Option<&[u8]>| {
        digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::try_from(number(digits, 16)?).ok())
            .map(Meant::Byte)
    };
    match text {
        [b'%', ..] => Some((byte(text.get(1..3))?, 3)),
        [b'\\', b'x', ..] => Some((byte(text.get(2..4))?, 4)),
        [b'\\', b'u', ..] => Some((Meant::Letter(char::from_u32(number(text.get(2..6)?, 16)?)?), 6)),
        [b'\\', letter @ (b'"' | b'\\' | b'/' | b'\''), ..] => Some((Meant::Byte(*letter), 2)),
        [b'&', ..] => {
            let end = text.iter().take(10).position(|byte| *byte == b';')?;
            let letter = match &text[1..end] {
                b"amp" => '&',
                b"lt" => '<',
                b"gt" => '>',
                b"quot" => '"',
                b"apos" => '\'',
                [b'#', b'x' | b'X', digits @ ..] => char::from_u32(number(digits, 16)?)?,
                [b'#', digits @ ..] => char::from_u32(number(digits, 10)?)?,
                _ => return None,
            };
            Some((Meant::Letter(letter), end + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    const SECRET: &str = "Bearer k3y/of+the\"shop&more=<zoë>";
    const TOKEN: &str = "k3y/of+the\"shop&more=<zoë>";

    fn redactor(secret: &str) -> Redactor {
        let mut redactor = Redactor::default();
        redactor.add(&secret.into());
        redactor
    }

    /// Whether something of the secret is left, in letters that do not stand around it.
    fn redacted(redactor: &Redactor, written: &str) -> String {
        let kept = redactor.redact(&format!("you sent ({written})."), false);
        assert!(kept.starts_with("you sent (") && kept.ends_with(").") && kept.contains(INSTEAD), "{kept}");
        kept
    }

    #[test]
    fn a_secret_is_removed_in_every_usual_encoding() {
        let redactor = redactor(SECRET);
        let hex: String = TOKEN.bytes().map(|byte| format!("{byte:02x}")).collect();
        let percent: String = TOKEN.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let unicode: String = TOKEN.chars().map(|letter| format!("\\u{:04x}", u32::from(letter))).collect();
        let entities: String = TOKEN.chars().map(|letter| format!("&#{};", u32::from(letter))).collect();
        for written in [
            TOKEN.to_owned(),
            TOKEN.to_ascii_uppercase(),
            serde_json::to_string(TOKEN).unwrap(),
            TOKEN.replace('/', "\\/").replace('"', "\\u0022"),
            percent_encoding::utf8_percent_encode(TOKEN, percent_encoding::NON_ALPHANUMERIC).to_string(),
            TOKEN.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"),
            percent,
            unicode,
            entities,
            hex.to_ascii_uppercase(),
            hex,
        ] {
            assert_eq!(redacted(&redactor, &written).matches(INSTEAD).count(), 1, "{written}");
            let kept = redacted(&redactor, &written);
            assert!(kept.len() < 30, "{written}: {kept}");
        }
        for before in ["", "a", "ab"] {
            let sent = format!("{before}{SECRET}");
            for encoded in [STANDARD.encode(&sent), URL_SAFE.encode(&sent)] {
                let kept = redacted(&redactor, &encoded);
                assert!(kept.len() < 36, "{encoded}: {kept}");
            }
        }
    }

    #[test]
    fn a_key_is_removed_as_bytes_too() {
        let redactor = redactor("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        let key = STANDARD.decode("C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        for written in ["C2FVsBQIhrscChlQIMV+b5sSYspob7oD", &URL_SAFE.encode(&key), &hex] {
            assert!(redacted(&redactor, written).len() < 30, "{written}");
        }
    }

    #[test]
    fn a_long_enough_part_is_removed_and_nothing_else() {
        let redactor = redactor("0123456789abcdef-secret-of-the-shop");
        for part in ["0123456789ab…", "…-secret-of-the-shop", "…6789ABCDEF-sec…"] {
            assert!(redacted(&redactor, part).len() < 34, "{part}");
        }
        for text in ["the secret of the shop", "0123456 789abcd", "secret of", "no key", ""] {
            assert_eq!(redactor.redact(text, false), text);
        }
        let short = self::redactor("k3y");
        assert_eq!(short.redact("a K3Y, no other", false), "a [redacted], no other");
    }

    #[test]
    fn what_was_cut_ends_in_no_beginning_of_a_secret() {
        let redactor = redactor("0123456789abcdef-secret-of-the-shop");
        for length in 1..20 {
            let cut = format!("you sent it: {}", &"0123456789abcdef-secret-of-the-shop"[..length]);
            let kept = redactor.redact(&cut, true);
            assert!(!kept.contains('0') && kept.starts_with("you se"), "{kept}");
        }
    }

    #[test]
    fn any_text_is_borne() {
        let redactor = redactor(SECRET);
        for text in ["%", "%4", "\\", "\\u00", "\\ud800", "&#99999999;", "&;", "é%é", "zoë>zoë>zoë>", "&#x;"]
        {
            let _ = redactor.redact(text, true);
            let _ = redactor.redact(text, false);
        }
    }
}
