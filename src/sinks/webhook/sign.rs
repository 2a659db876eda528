//! Standard Webhooks signatures, version `v1` (HMAC-SHA256): signs for the sink, verifies for the receiver.
//! Pure.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Header with the event's id, the same on every attempt.
pub const ID: &str = "webhook-id";
/// Header with the time of the attempt, in seconds since 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// Header with one `v1,<base64>` for each active secret, separated by spaces.
pub const SIGNATURE: &str = "webhook-signature";
/// Largest difference between the timestamp and the receiver's clock, in seconds.
pub const TOLERANCE: u64 = 300;

/// Padding may be missing.
const INDIFFERENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_INDIFFERENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, INDIFFERENT);
const URL_SAFE_INDIFFERENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, INDIFFERENT);

/// Length of an encoded signature with its version and a space.
const ENCODED: usize = "v1,".len() + 44 + 1;

/// A signing secret: 24 to 64 bytes. Prints as `[REDACTED]`, wiped on drop.
#[derive(Debug, Clone)]
pub struct Key(SecretSlice<u8>);

impl Key {
    /// Parses `whsec_<base64>`, or takes the bytes of any other text, unless that cannot have been meant: a
    /// wrong key is not noticed here, only by each receiver.
    ///
    /// # Errors
    /// What is wrong with the secret, without any part of it.
    pub fn parse(text: &SecretString) -> Result<Self, String> {
        let text = text.expose_secret().trim();
        let inner = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        let bytes = match encoded(inner.unwrap_or(text)) {
            Some(encoded) => decode(encoded)?,
            None => match unlikely(text) {
                Some(problem) => return Err(problem.to_owned()),
                None => text.as_bytes().to_vec(),
            },
        };
        let key = Self(bytes.into());
        match key.0.expose_secret().len() {
            24..=64 => Ok(key),
            length => Err(format!(
                "a secret must have 24 to 64 bytes, not {length}; try: echo whsec_$(openssl rand -base64 32)"
            )),
        }
    }

    fn code(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut code =
            Hmac::<Sha256>::new_from_slice(self.0.expose_secret()).expect("HMAC takes keys of every length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            code.update(part);
        }
        code
    }
}

/// What follows `whsec_`, in whatever case that is.
fn encoded(text: &str) -> Option<&str> {
    let (prefix, encoded) = text.split_at_checked("whsec_".len())?;
    prefix.eq_ignore_ascii_case("whsec_").then_some(encoded)
}

/// Base64 of either alphabet, with or without its padding.
fn decode(encoded: &str) -> Result<Vec<u8>, String> {
    let engine = if encoded.contains(['-', '_']) { &URL_SAFE_INDIFFERENT } else { &STANDARD_INDIFFERENT };
    let bytes = engine.decode(encoded).map_err(|_| {
        "after whsec_ a secret must be base64, without quotes, spaces and anything else behind it".to_owned()
    })?;
    if encoded.len() >= 32 && !encoded.contains(|letter: char| letter.is_ascii_lowercase()) {
        return Err("a secret in upper case was changed on its way; write it as it was made".to_owned());
    }
    Ok(bytes)
}

/// Why a text that is no `whsec_…` cannot have been meant as a secret.
fn unlikely(text: &str) -> Option<&'static str> {
    let is_base64 = |letter: char| letter.is_ascii_alphanumeric() || "+/=".contains(letter);
    let looks_encoded = text.ends_with('=') || text.len().is_multiple_of(4) && text.contains(['+', '/']);
    if text.starts_with(['"', '\'']) || text.ends_with(['"', '\'']) {
        Some("a secret in quotes is refused; remove them")
    } else if text.contains(char::is_control) {
        Some("a secret with a line break or another control character is refused; write it on one line")
    } else if text.ends_with("\\n") || text.ends_with("\\r") {
        Some("a secret that ends in the two letters \\n is refused; remove them")
    } else if ["env:", "file:", "${", "$("].iter().any(|start| text.starts_with(start)) {
        Some("the secret is itself a reference, which nothing has replaced; write the secret there")
    } else if text.contains("whsec_") {
        Some("a secret begins with whsec_; remove what stands before it")
    } else if text.chars().all(is_base64) && looks_encoded {
        Some("the secret looks like base64 without its prefix; write whsec_ before it, as receivers read it")
    } else {
        None
    }
}

/// The value of `webhook-signature`: one signature for each key; none without keys.
#[must_use]
pub fn sign(keys: &[Key], id: &str, timestamp: &str, body: &[u8]) -> Option<HeaderValue> {
    let mut value = String::with_capacity(keys.len() * ENCODED);
    for key in keys {
        value.push_str(if value.is_empty() { "v1," } else { " v1," });
        STANDARD.encode_string(key.code(id, timestamp, body).finalize().into_bytes(), &mut value);
    }
    HeaderValue::try_from(value).ok().filter(|value| !value.is_empty())
}

/// Whether one of the keys signed this request within [`TOLERANCE`] of `now`, in seconds since 1970.
#[must_use]
pub fn verify(keys: &[Key], headers: &HeaderMap, body: &[u8], now: u64) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(timestamp), Some(signatures)) = (text(ID), text(TIMESTAMP), text(SIGNATURE)) else {
        return false;
    };
    if !timestamp.parse::<u64>().is_ok_and(|signed_at| signed_at.abs_diff(now) <= TOLERANCE) {
        return false;
    }
    keys.iter().any(|key| {
        let expected = key.code(id, timestamp, body).finalize().into_bytes();
        signatures
            .split(' ')
            .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
            .any(|given| bool::from(given.as_slice().ct_eq(expected.as_slice())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn key(text: &str) -> Key {
        Key::parse(&text.into()).unwrap()
    }

    fn signed(keys: &[Key], timestamp: &str, body: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID, HeaderValue::from_static("msg_1"));
        headers.insert(TIMESTAMP, timestamp.parse().unwrap());
        headers.insert(SIGNATURE, sign(keys, "msg_1", timestamp, body).unwrap());
        headers
    }

    #[test]
    fn both_published_test_vectors_are_reproduced() {
        for (secret, id, timestamp, body, expected) in [
            (
                SECRET,
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                "1649367553",
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
        ] {
            assert_eq!(sign(&[key(secret)], id, timestamp, body.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn during_a_rotation_each_secret_verifies() {
        let (old, new, other) =
            (key("an old secret of enough bytes"), key(SECRET), key("a secret that has signed nothing"));
        let headers = signed(&[old.clone(), new.clone()], "1000", b"{}");
        assert!(
            verify(&[old], &headers, b"{}", 1000)
                && verify(std::slice::from_ref(&new), &headers, b"{}", 1300)
        );
        assert!(!verify(&[other], &headers, b"{}", 1000));
        standardwebhooks::Webhook::new(SECRET).unwrap().sign("msg_1", 1000, b"{}").map_or_else(
            |error| panic!("{error}"),
            |theirs| assert!(headers[SIGNATURE].to_str().unwrap().ends_with(&theirs)),
        );
    }

    #[test]
    fn a_changed_stale_or_unsigned_request_does_not_verify() {
        let keys = [key(SECRET)];
        let headers = signed(&keys, "1000", b"{}");
        assert!(!verify(&keys, &headers, b"{ }", 1000));
        assert!(!verify(&keys, &headers, b"{}", 1301) && !verify(&keys, &headers, b"{}", 699));
        for name in [ID, TIMESTAMP, SIGNATURE] {
            let mut headers = headers.clone();
            headers.insert(name, HeaderValue::from_static("v1,AAAA -1 NaN"));
            assert!(!verify(&keys, &headers, b"{}", 1000), "{name}");
            headers.remove(name);
            assert!(!verify(&keys, &headers, b"{}", 1000), "{name}");
        }
        assert_eq!(sign(&[], "msg_1", "1000", b"{}"), None);
    }

    #[test]
    fn a_secret_is_what_was_meant() {
        const MADE: &str = "whsec_6Q3v+Zx/0kqY8dJtL5bWmNc4RfGhUoPiSaEyTzXvBw8=";
        let meant = sign(&[key(MADE)], "msg_1", "1000", b"{}");
        let bare = MADE.trim_end_matches('=');
        for written in [
            format!("{MADE}\n"),
            format!(" {MADE}\r\n"),
            format!("\"{MADE}\""),
            format!("'{MADE}'"),
            MADE.replace("whsec_", "WHSEC_"),
            bare.to_owned(),
            bare.replace('+', "-").replace('/', "_"),
        ] {
            assert_eq!(sign(&[key(&written)], "msg_1", "1000", b"{}"), meant, "{written:?}");
        }
    }

    #[test]
    fn a_secret_that_cannot_have_been_meant_is_refused_in_words() {
        for (written, words) in [
            ("\"a secret of enough bytes, quoted\"", "quotes"),
            ("a secret of enough bytes, quoted'", "quotes"),
            ("one secret on a line\nand another one", "one line"),
            ("a secret of enough bytes and\\n", "two letters"),
            ("${PGOUTBOX_SECRET_OF_THE_SHOP}", "reference"),
            ("env:PGOUTBOX_SECRET_OF_THE_SHOP", "reference"),
            ("secret=whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "before it"),
            ("6Q3v+Zx/0kqY8dJtL5bWmNc4RfGhUoPiSaEyTzXvBw8=", "whsec_"),
            ("C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_"),
            ("WHSEC_C2FVSBQIHRSCCHLQIMV+B5SSYSPOB7OD", "upper case"),
            ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD whsec_x", "base64"),
        ] {
            let refusal = Key::parse(&written.into()).expect_err(written);
            assert!(refusal.contains(words) && !refusal.contains("C2FV"), "{written}: {refusal}");
        }
        for text in ["a text of enough bytes, chosen", "0123456789abcdef0123456789abcdef"] {
            key(text);
        }
    }

    #[test]
    fn a_weak_or_broken_secret_is_refused_without_being_shown() {
        for text in ["", "canary", "whsec_", "whsec_canary!", "whsec_Y2FuYXJ5", &"canary".repeat(11)] {
            let refusal = Key::parse(&text.into()).expect_err(text);
            assert!(!refusal.contains("canary") && !refusal.contains("Y2FuYXJ5"), "{refusal}");
        }
        assert!(!format!("{:?}", key("canary canary canary canary")).contains("canary"));
    }
}
