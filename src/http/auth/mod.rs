//! Checks Host, Origin and token of each request before any handler, and tells the handler who asks.
//!
//! Tokens are taken out of a request (`given.rs`), and appear in no log and no answer.

mod given;
mod jwt;
mod keys;
mod origin;
mod remote;
mod ring;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use self::{
    given::Given,
    jwt::{Refusal, Verifier},
    origin::{From, single},
};
pub use self::{
    jwt::{Jwks, Jwt},
    keys::{Keys, LARGEST},
    origin::origin,
    remote::{Pace, Remote},
};
use super::{Settings, problem, sources::within};
use crate::live::caller::Caller;

/// Paths for everybody: process managers have no token, and a script is the same for all.
const PUBLIC: [&str; 3] = ["/livez", "/readyz", SCRIPT];
/// The module for browsers.
pub(super) const SCRIPT: &str = "/client.js";
/// Live clients, by WebSocket.
const SOCKET: &str = "/v1/ws";
/// Live clients, by Server-Sent Events.
const STREAM: &str = "/v1/stream";
/// Beginning of the paths that pages of allowed origins may use.
const API: &str = "/v1/";
/// Seconds after which a token that could not be judged may be sent again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

/// The checks for one listener.
#[derive(Debug)]
pub(super) struct Guard {
    /// Address that Host must name, if the listener is on loopback. Elsewhere any Host is allowed, and a
    /// token required.
    loopback: Option<IpAddr>,
    /// Whether no path needs a token.
    is_public: bool,
    /// SHA-256 of the token, so that comparing takes the same time for every length.
    token: Option<[u8; 32]>,
    jwt: Option<Verifier>,
    /// Origins of pages that may use the API, besides the own one.
    origins: Vec<String>,
}

/// Why a request is not passed on.
enum Refused {
    NoHost,
    OtherHost,
    OtherOrigin,
    NoToken,
    WrongToken(Option<String>),
    DifferentTokens,
    Unjudged,
    NoOperator,
}

impl Guard {
    pub(super) fn new(address: SocketAddr, settings: &Settings) -> Self {
        let token = |token: &SecretString| Sha256::digest(token.expose_secret()).into();
        Self {
            token: settings.token.as_ref().map(token),
            jwt: settings.jwt.clone().map(Verifier::new),
            origins: settings.origins.clone(),
            is_public: false,
            ..Self::of_probes(address)
        }
    }

    /// For an address where there is nothing that would need a token.
    pub(super) fn of_probes(address: SocketAddr) -> Self {
        let loopback = Some(address.ip()).filter(IpAddr::is_loopback);
        Self { loopback, is_public: true, token: None, jwt: None, origins: Vec::new() }
    }

    /// Keeps the keys of tokens fresh until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken) {
        if let Some(jwt) = &self.jwt {
            jwt.follow(shutdown).await;
        }
    }

    fn is_own_host(&self, host: &Authority) -> bool {
        let name = host.host();
        let Some(address) = self.loopback else { return true };
        let numeric = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || ["127.0.0.1", "[::1]"].contains(&name)
            || numeric.is_ok_and(|numeric| numeric == address)
    }

    /// The origins whose pages may use a path.
    fn origins(&self, path: &str) -> &[String] {
        let path = within(path);
        if path.starts_with(API) || path == SCRIPT { &self.origins } else { &[] }
    }

    /// Where a request comes from, or why that is refused.
    fn place(&self, request: &Request) -> Result<From, Refused> {
        let (uri, headers) = (request.uri(), request.headers());
        let host = origin::host(uri, headers).ok_or(Refused::NoHost)?;
        if !self.is_own_host(&host) {
            return Err(Refused::OtherHost);
        }
        match origin::from(headers, &host, self.origins(uri.path())) {
            From::Elsewhere => Err(Refused::OtherOrigin),
            place => Ok(place),
        }
    }

    /// Who asks, and whether they may use this path.
    async fn admit(&self, request: &mut Request) -> Result<(), Refused> {
        let given = given::take(request);
        let path = within(request.uri().path());
        if self.is_public || PUBLIC.contains(&path) {
            return Ok(());
        }
        let is_for_all = [SOCKET, STREAM].contains(&path);
        let caller = self.caller(given).await?;
        if !is_for_all && !caller.is_operator() {
            return Err(Refused::NoOperator);
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }

    async fn caller(&self, given: Given) -> Result<Caller, Refused> {
        if self.token.is_none() && self.jwt.is_none() && self.loopback.is_some() {
            return Ok(Caller::Open);
        }
        let token = match given {
            Given::Token(token) => token,
            Given::Nothing => return Err(Refused::NoToken),
            Given::Other => return Err(Refused::WrongToken(None)),
            Given::Different => return Err(Refused::DifferentTokens),
        };
        let token = token.expose_secret();
        let is_operators = |expected: &[u8; 32]| Sha256::digest(token).as_slice().ct_eq(expected).into();
        if self.token.as_ref().is_some_and(is_operators) {
            return Ok(Caller::Operator);
        }
        let Some(jwt) = &self.jwt else { return Err(Refused::WrongToken(None)) };
        match jwt.claims(token).await {
            Ok(claims) => Ok(Caller::Client(Arc::new(claims))),
            Err(Refusal::Invalid(problem)) => {
                Err(Refused::WrongToken(Some(format!("the token is refused: {problem}"))))
            }
            Err(Refusal::Unjudged) => Err(Refused::Unjudged),
        }
    }

    /// What a token may be.
    fn wanted(&self) -> &'static str {
        match (&self.token, &self.jwt) {
            (_, None) => "send the header Authorization: Bearer with http.token",
            (None, Some(_)) => "send the header Authorization: Bearer with a JWT",
            (Some(_), Some(_)) => "send the header Authorization: Bearer with http.token or a JWT",
        }
    }

    fn answer(&self, refused: Refused) -> Response {
        let scheme = if matches!(refused, Refused::NoToken) { "Bearer" } else { INVALID };
        let (status, detail) = match refused {
            Refused::NoHost => (StatusCode::BAD_REQUEST, "the request must have one Host"),
            Refused::OtherHost => {
                (StatusCode::FORBIDDEN, "the Host is not this machine; use 127.0.0.1 or localhost")
            }
            Refused::OtherOrigin => {
                (StatusCode::FORBIDDEN, "requests from pages of another origin are refused")
            }
            Refused::NoToken | Refused::WrongToken(None) => (StatusCode::UNAUTHORIZED, self.wanted()),
            Refused::WrongToken(Some(ref problem)) => (StatusCode::UNAUTHORIZED, problem.as_str()),
            Refused::DifferentTokens => {
                (StatusCode::BAD_REQUEST, "the request has two different tokens; send one")
            }
            Refused::Unjudged => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the keys of http.jwt.jwks cannot be fetched now, and the token needs one",
            ),
            Refused::NoOperator => (
                StatusCode::FORBIDDEN,
                "this path is for operators: use http.token, or a JWT whose scope has operator",
            ),
        };
        let mut answer = problem(status, detail);
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        answer
    }
}

/// What a client reads that sent a token in vain (RFC 6750).
const INVALID: &str = "Bearer error=\"invalid_token\"";

/// Refuses a request or passes it on, with its [`Caller`] among the extensions.
pub(super) async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let place = match guard.place(&request) {
        Ok(place) => place,
        Err(refused) => return guard.answer(refused),
    };
    let depends_on_origin = !guard.origins(request.uri().path()).is_empty();
    let is_asked = origin::is_preflight(request.method(), request.headers());
    let mut answer = match &place {
        From::Allowed(_) if is_asked => {
            let mut answer = StatusCode::NO_CONTENT.into_response();
            origin::allow_methods(answer.headers_mut());
            answer
        }
        _ => match guard.admit(&mut request).await {
            Ok(()) => next.run(request).await,
            Err(refused) => guard.answer(refused),
        },
    };
    if depends_on_origin {
        answer.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    if let From::Allowed(origin) = place {
        origin::allow_reading(answer.headers_mut(), origin);
    }
    answer
}
