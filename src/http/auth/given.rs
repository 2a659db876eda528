//! The token of a request, wherever it was sent. It is taken out of the request, so that no handler can show
//! or log it.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Uri, header, uri::PathAndQuery},
};
use secrecy::{ExposeSecret, SecretString};
use url::form_urlencoded;

use super::{SOCKET, STREAM, single};

/// Parameter of the query that holds a token.
const PARAMETER: &str = "access_token";
/// Beginning of a subprotocol that holds a token.
const SUBPROTOCOL: &str = "bearer.";

/// What a request has to prove who asks.
#[derive(Debug)]
pub(super) enum Given {
    /// No token.
    Nothing,
    /// One token, perhaps sent in two ways.
    Token(SecretString),
    /// An Authorization header without a token, or several of them.
    Other,
    /// Two different tokens.
    Different,
}

/// Takes the token of a request. A browser cannot set headers of a WebSocket and of an `EventSource`; for
/// their paths the token may be in the query or, of a WebSocket, among the subprotocols.
pub(super) fn take(request: &mut Request) -> Given {
    let (is_socket, is_live) =
        (request.uri().path() == SOCKET, [SOCKET, STREAM].contains(&request.uri().path()));
    let of_query = of_query(request.uri_mut());
    let of_subprotocols = if is_socket { of_subprotocols(request.headers_mut()) } else { Vec::new() };
    let mut tokens = if is_live { of_query } else { Vec::new() };
    tokens.extend(of_subprotocols);
    if request.headers().contains_key(header::AUTHORIZATION) {
        let token = of_header(request.headers());
        request.headers_mut().remove(header::AUTHORIZATION);
        let Some(token) = token else { return Given::Other };
        tokens.insert(0, token);
    }
    let mut tokens = tokens.into_iter();
    let Some(first) = tokens.next() else { return Given::Nothing };
    let is_same = |other: SecretString| other.expose_secret() == first.expose_secret();
    if tokens.all(is_same) { Given::Token(first) } else { Given::Different }
}

fn of_header(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, token) = single(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().into())
}

fn of_query(uri: &mut Uri) -> Vec<SecretString> {
    let Some(query) = uri.query() else { return Vec::new() };
    let token = |pair: &str| {
        let (name, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
        (name == PARAMETER).then(|| SecretString::from(value.into_owned()))
    };
    let tokens: Vec<_> = query.split('&').filter_map(token).collect();
    if !tokens.is_empty() {
        let rest: Vec<_> = query.split('&').filter(|pair| token(pair).is_none()).collect();
        let separator = if rest.is_empty() { "" } else { "?" };
        let rest = format!("{}{separator}{}", uri.path(), rest.join("&"));
        let mut parts = uri.clone().into_parts();
        // Parts of what was valid are valid.
        parts.path_and_query = PathAndQuery::try_from(rest).ok();
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
    tokens
}

fn of_subprotocols(headers: &mut HeaderMap) -> Vec<SecretString> {
    let values: Vec<_> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .collect();
    let (tokens, rest): (Vec<String>, Vec<String>) =
        values.into_iter().partition(|protocol| protocol.starts_with(SUBPROTOCOL));
    if !tokens.is_empty() {
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Some(rest) = HeaderValue::try_from(rest.join(", ")).ok().filter(|_| !rest.is_empty()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
    tokens.iter().filter_map(|token| token.strip_prefix(SUBPROTOCOL)).map(SecretString::from).collect()
}
