//! The keys of `[http.jwt]`.

use std::{fs, io::Read as _, net::IpAddr, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::{Host, Url};

use super::{read::Reader, sources::Sources};
use crate::{
    http::{Jwks, Jwt, Keys, LARGEST_JWKS, Pace, Remote},
    sink::{egress::Egress, settings::text},
};

/// Shortest secret that is not warned of, in bytes: the length of what HS256 computes (RFC 7518).
const SHORT: usize = 32;

/// Whose tokens are valid; none if neither a secret nor keys are set.
pub(super) fn read(reader: &mut Reader, sources: &Sources, egress: &Egress) -> Option<Jwt> {
    let secret = reader.read_secret("http.jwt.secret", |value| sources.resolve(&text(value)?));
    let jwks = reader.read_secret("http.jwt.jwks", |value| jwks(value, egress));
    let issuer = reader.read("http.jwt.issuer", text);
    let audience = reader.read("http.jwt.audience", text);
    let jwt = Jwt { secret, jwks, issuer, audience };
    for key in ["http.jwt.issuer", "http.jwt.audience"] {
        let is_alone = !reader.is_set("http.jwt.secret") && !reader.is_set("http.jwt.jwks");
        if is_alone && reader.is_set(key) {
            reader.refuse(key, "is of no use without http.jwt.secret or http.jwt.jwks; set one of them");
        }
    }
    (jwt.secret.is_some() || jwt.jwks.is_some()).then_some(jwt)
}

/// Whether a secret is so short that it can be found out.
pub(super) fn is_short(jwt: Option<&Jwt>) -> bool {
    let secret: Option<&SecretString> = jwt.and_then(|jwt| jwt.secret.as_ref());
    secret.is_some_and(|secret| secret.expose_secret().len() < SHORT)
}

fn jwks(value: &Value, egress: &Egress) -> Result<Jwks, String> {
    let written = text(value)?;
    if let Some(path) = written.strip_prefix("file:") {
        let mut keys = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(LARGEST_JWKS as u64 + 1).read_to_end(&mut keys))
            .map_err(|error| format!("reading {path}: {error}"))?;
        if keys.len() > LARGEST_JWKS {
            return Err(format!("the file has more than {LARGEST_JWKS} bytes"));
        }
        return Keys::parse(&keys).map(|keys| Jwks::File(Arc::new(keys)));
    }
    let wrong = || {
        "must be file:/path, or an address with https:, or with http: on this machine, such as \
         https://login.example.com/.well-known/jwks.json"
            .to_owned()
    };
    let url = Url::parse(&written).map_err(|_| wrong())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials: keys are public".to_owned());
    }
    let usable = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
    if !usable || url.host().is_none() {
        return Err(wrong());
    }
    Ok(Jwks::Url(Arc::new(Remote::new(url, egress.clone(), Pace::default()))))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}
