//! Sets of public keys (JWKS, RFC 7517). Pure.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Largest set of keys, in bytes.
pub const LARGEST: usize = 256 * 1024;
/// Bytes of the modulus of an RSA key.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// The keys of a set that can verify RS256 or ES256.
#[derive(Debug, Clone)]
pub struct Keys(Vec<Key>);

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The members of a key that are used.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Reads a set. Keys that can verify neither RS256 nor ES256 are left out: other kinds, those for
    /// encryption, RSA keys of less than 2,048 bits.
    ///
    /// # Errors
    /// When it is not a set, or no key is left.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Set = serde_json::from_slice(text)
            .map_err(|_| "is not a set of keys: write JSON such as {\"keys\": [{\"kty\": \"RSA\", …}]}")?;
        let jwks = set.keys.into_iter().filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok());
        let keys: Vec<Key> = jwks.filter_map(key).collect();
        if keys.is_empty() {
            return Err("has no key for RS256 (RSA, 2,048 to 8,192 bits) or ES256 (EC, P-256)".to_owned());
        }
        Ok(Self(keys))
    }

    /// The key of this id and algorithm. Without an id the only key of the algorithm, if there is one.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
        let first = fitting.next()?;
        (id.is_some() || fitting.next().is_none()).then_some(&first.key)
    }
}

fn key(jwk: Jwk) -> Option<Key> {
    if jwk.r#use.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let is_for = |algorithm: &str| jwk.alg.as_deref().is_none_or(|alg| alg == algorithm);
    let (algorithm, key) = match jwk.kty.as_str() {
        "RSA" if is_for("RS256") => {
            let (n, e) = (number(&jwk.n?)?, number(&jwk.e?)?);
            MODULUS.contains(&n.len()).then_some(())?;
            (Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e))
        }
        "EC" if is_for("ES256") && jwk.crv.as_deref() == Some("P-256") => {
            let (x, y) = (bytes(&jwk.x?)?, bytes(&jwk.y?)?);
            (x.len() == 32 && y.len() == 32).then_some(())?;
            (Algorithm::ES256, DecodingKey::from_ec_der(&[vec![4], x, y].concat()))
        }
        _ => return None,
    };
    Some(Key { id: jwk.kid, algorithm, key })
}

/// A number without the zeros before it, which ring refuses and some encoders write.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = bytes(text)?;
    let begin = bytes.iter().position(|byte| *byte != 0)?;
    bytes.get(begin..).map(<[u8]>::to_vec)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rsa(bits: usize, zeros: usize) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([vec![0; zeros], vec![0x81; bits / 8]].concat())
    }

    fn parse(keys: Value) -> Result<Keys, String> {
        Keys::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn keys_that_verify_neither_rs256_nor_es256_are_left_out() {
        let (n, point) = (rsa(2048, 0), BASE64_URL_SAFE_NO_PAD.encode([7; 32]));
        let good = json!({ "kty": "RSA", "kid": "good", "n": n, "e": "AQAB" });
        for other in [
            json!({ "kty": "RSA", "kid": "a", "n": rsa(1024, 0), "e": "AQAB" }),
            json!({ "kty": "RSA", "kid": "a", "n": rsa(1024, 200), "e": "AQAB" }),
            json!({ "kty": "RSA", "kid": "a", "n": n, "e": "AQAB", "use": "enc" }),
            json!({ "kty": "RSA", "kid": "a", "n": n, "e": "AQAB", "alg": "RS512" }),
            json!({ "kty": "RSA", "kid": "a", "n": "not base64!", "e": "AQAB" }),
            json!({ "kty": "RSA", "kid": "a", "e": "AQAB" }),
            json!({ "kty": "EC", "kid": "a", "crv": "P-384", "x": point, "y": point }),
            json!({ "kty": "EC", "kid": "a", "crv": "P-256", "x": "AAAA", "y": point }),
            json!({ "kty": "oct", "kid": "a", "k": "c2VjcmV0" }),
            json!({ "kty": "OKP", "kid": "a", "crv": "Ed25519", "x": point }),
            json!("a"),
        ] {
            let keys = parse(json!([other, good])).unwrap();
            assert!(keys.find(Some("good"), Algorithm::RS256).is_some(), "{other}");
            assert_eq!(keys.0.len(), 1, "{other}");
            assert!(parse(json!([other])).unwrap_err().contains("has no key"), "{other}");
        }
        assert!(parse(json!([{ "kty": "RSA", "n": rsa(2048, 1), "e": "AQAB", "use": "sig" }])).is_ok());
    }

    #[test]
    fn a_text_that_is_no_set_is_refused() {
        for text in ["", "[]", "{}", "{\"keys\": {}}", "<html>", "\u{0}"] {
            assert!(Keys::parse(text.as_bytes()).unwrap_err().contains("is not a set"), "{text}");
        }
    }

    #[test]
    fn a_key_is_found_by_id_and_algorithm_and_without_an_id_only_if_it_is_the_only_one() {
        let (n, point) = (rsa(2048, 0), BASE64_URL_SAFE_NO_PAD.encode([7; 32]));
        let one = json!({ "kty": "RSA", "kid": "one", "n": n, "e": "AQAB" });
        let two = json!({ "kty": "RSA", "kid": "two", "n": n, "e": "AQAB" });
        let ec = json!({ "kty": "EC", "kid": "one", "crv": "P-256", "x": point, "y": point });
        let nameless = json!({ "kty": "RSA", "n": n, "e": "AQAB" });
        let several = parse(json!([one, two, ec])).unwrap();
        assert!(several.find(Some("two"), Algorithm::RS256).is_some());
        assert!(several.find(Some("two"), Algorithm::ES256).is_none());
        assert!(several.find(Some("three"), Algorithm::RS256).is_none());
        assert!(several.find(None, Algorithm::RS256).is_none());
        assert!(several.find(None, Algorithm::ES256).is_some());
        let alone = parse(json!([nameless])).unwrap();
        assert!(alone.find(None, Algorithm::RS256).is_some());
        assert!(alone.find(Some("one"), Algorithm::RS256).is_none());
    }
}
