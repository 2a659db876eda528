//! JSON Web Tokens, signed by real keys, and the sets of their public keys.

use std::{process::Command, sync::OnceLock};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

/// Signs tokens.
pub(crate) enum Signer {
    Hs256(Vec<u8>),
    Rs256(Box<RsaKeyPair>),
    Es256(Box<EcdsaKeyPair>),
}

/// Claims of a client of one organization, valid for an hour, with further ones.
pub(crate) fn claims(more: Value) -> Value {
    let mut claims = json!({ "organization": "acme", "exp": now() + 3_600 });
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A token with this header, whatever it says, and the signature of `signer`.
pub(crate) fn token(header: &Value, claims: &Value, signer: &Signer) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

impl Signer {
    pub(crate) fn secret(secret: &str) -> Self {
        Self::Hs256(secret.as_bytes().to_vec())
    }

    /// The RSA key of this process: making one takes long.
    pub(crate) fn rsa() -> Self {
        static KEY: OnceLock<Vec<u8>> = OnceLock::new();
        let der = KEY.get_or_init(|| {
            let options = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"];
            let made = Command::new("openssl").arg("genpkey").args(options).output().unwrap();
            assert!(made.status.success(), "openssl, of the package openssl");
            // PKCS #8 or, by OpenSSL 3.0, PKCS #1.
            made.stdout
        });
        Self::Rs256(Box::new(RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)).unwrap()))
    }

    /// A new EC key.
    pub(crate) fn ec() -> Self {
        let (way, chance) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(way, &chance).unwrap();
        Self::Es256(Box::new(EcdsaKeyPair::from_pkcs8(way, key.as_ref(), &chance).unwrap()))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let chance = SystemRandom::new();
        match self {
            Self::Hs256(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &chance, message, &mut signature).unwrap();
                signature
            }
            Self::Es256(key) => key.sign(&chance, message).unwrap().as_ref().to_vec(),
        }
    }

    /// The algorithm that fits the key.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
        }
    }

    /// A token with these claims, and the id of the key if it has one.
    pub(crate) fn token(&self, id: Option<&str>, claims: &Value) -> String {
        let mut header = json!({ "typ": "JWT", "alg": self.algorithm() });
        if let Some(id) = id {
            header["kid"] = id.into();
        }
        token(&header, claims, self)
    }

    /// The public key for a set of keys.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Hs256(_) => panic!("a secret is in no set of public keys"),
            Self::Rs256(key) => {
                let key: PublicKeyComponents<Vec<u8>> = key.public().into();
                json!({ "kty": "RSA", "kid": id, "use": "sig", "n": text(&key.n), "e": text(&key.e) })
            }
            Self::Es256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "kid": id, "crv": "P-256", "x": text(x), "y": text(y) })
            }
        }
    }
}

/// A set of public keys.
pub(crate) fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}
