//! Checks Host, Origin and token of each request before any handler.
//!
//! A web page that a developer visits can send requests to 127.0.0.1. It cannot hide its Origin, and a DNS
//! name that was rebound to 127.0.0.1 shows in Host.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem;

/// Paths that need no token: process managers have none.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// The checks for one listener.
#[derive(Debug)]
pub(super) struct Guard {
    /// Address that Host must name, if the listener is on loopback. Elsewhere any Host is allowed, and a
    /// token required.
    loopback: Option<IpAddr>,
    /// SHA-256 of the token, so that comparing takes the same time for every length.
    token: Option<[u8; 32]>,
}

impl Guard {
    pub(super) fn new(address: SocketAddr, token: Option<&SecretString>) -> Self {
        Self {
            loopback: Some(address.ip()).filter(IpAddr::is_loopback),
            token: token.map(|token| Sha256::digest(token.expose_secret()).into()),
        }
    }

    fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let Some(host) = host(uri, headers) else {
            return Some(problem(StatusCode::BAD_REQUEST, "the request must have one Host"));
        };
        if !self.is_own_host(&host) {
            return Some(problem(
                StatusCode::FORBIDDEN,
                "the Host is not this machine; use 127.0.0.1 or localhost",
            ));
        }
        if headers.contains_key(header::ORIGIN) && !same_origin(headers, &host) {
            return Some(problem(StatusCode::FORBIDDEN, "requests from pages of another origin are refused"));
        }
        if !PROBES.contains(&uri.path()) && !self.has_token(headers) {
            let mut refusal =
                problem(StatusCode::UNAUTHORIZED, "send the header Authorization: Bearer with http.token");
            refusal
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            return Some(refusal);
        }
        None
    }

    fn is_own_host(&self, host: &Authority) -> bool {
        let name = host.host();
        let Some(address) = self.loopback else { return true };
        let numeric = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || ["127.0.0.1", "[::1]"].contains(&name)
            || numeric.is_ok_and(|numeric| numeric == address)
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else { return true };
        let given = single(headers, &header::AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        given.is_some_and(|given| Sha256::digest(given).as_slice().ct_eq(expected).into())
    }
}

/// Refuses a request or passes it on.
pub(super) async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let caller = match guard.token {
        Some(_) => crate::live::caller::Caller::Operator,
        None => crate::live::caller::Caller::Open,
    };
    request.extensions_mut().insert(caller);
    match guard.refusal(request.uri(), request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// The only Host. An address in the request line overrides the header (RFC 9112), so the two must be equal.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host: Authority = single(headers, &header::HOST)?.parse().ok()?;
    let agrees = uri.authority().is_none_or(|authority| authority == &host);
    // Parsers disagree about a user before the name.
    (agrees && !host.as_str().contains('@')).then_some(host)
}

fn same_origin(headers: &HeaderMap, host: &Authority) -> bool {
    let origin = single(headers, &header::ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(scheme, authority)| {
        matches!(scheme, "http" | "https")
            && authority.parse::<Authority>().is_ok_and(|authority| authority == *host)
    })
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
