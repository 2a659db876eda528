//! Host and Origin of a request, and what pages of allowed origins may do (CORS, Fetch Standard). Pure.
//!
//! A web page that a developer visits can send requests to 127.0.0.1. It cannot hide its Origin, and a DNS
//! name that was rebound to 127.0.0.1 shows in Host.

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{self, ACCESS_CONTROL_REQUEST_METHOD},
    uri::Authority,
};
use url::Url;

/// What pages of allowed origins may do.
const ALLOWED: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, Last-Event-ID"),
    // Seconds for which a browser need not ask again.
    (header::ACCESS_CONTROL_MAX_AGE, "600"),
];

/// An origin as browsers send it.
///
/// # Errors
/// What to write instead.
pub fn origin(text: &str) -> Result<String, String> {
    let wrong =
        || format!("{text:?} is not an origin; write its scheme and host, such as https://app.example.com");
    let url = Url::parse(text).map_err(|_| wrong())?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let is_bare = is_bare && url.username().is_empty() && url.password().is_none();
    let is_usable = is_bare && matches!(url.scheme(), "http" | "https") && !text.contains('*');
    is_usable.then(|| url.origin().ascii_serialization()).ok_or_else(wrong)
}

/// The only Host. An address in the request line overrides the header (RFC 9112), so the two must be equal.
pub(super) fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host: Authority = single(headers, &header::HOST)?.parse().ok()?;
    let agrees = uri.authority().is_none_or(|authority| authority == &host);
    // Parsers disagree about a user before the name.
    (agrees && !host.as_str().contains('@')).then_some(host)
}

/// Where a request comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum From {
    /// No page of another origin.
    Here,
    /// A page of an origin that is allowed here.
    Allowed(HeaderValue),
    /// A page of another origin.
    Elsewhere,
}

/// Where a request comes from. `allowed`: the origins that may use this path.
pub(super) fn from(headers: &HeaderMap, host: &Authority, allowed: &[String]) -> From {
    if !headers.contains_key(header::ORIGIN) {
        return From::Here;
    }
    let Some(origin) = single(headers, &header::ORIGIN) else { return From::Elsewhere };
    let own = origin.split_once("://").is_some_and(|(scheme, authority)| {
        matches!(scheme, "http" | "https")
            && authority.parse::<Authority>().is_ok_and(|authority| authority == *host)
    });
    if own {
        return From::Here;
    }
    let allowed = allowed.iter().find(|allowed| *allowed == origin);
    let allowed = allowed.and_then(|origin| HeaderValue::from_str(origin).ok());
    allowed.map_or(From::Elsewhere, From::Allowed)
}

/// Whether a browser asks what a page of another origin may do.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Says to the browser what pages of allowed origins may do.
pub(super) fn allow_methods(headers: &mut HeaderMap) {
    headers.extend(ALLOWED.map(|(name, value)| (name, HeaderValue::from_static(value))));
}

/// Lets the page that asked read the answer.
pub(super) fn allow_reading(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
}

/// The only value of a header.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host_as_browsers_write_it() {
        for (written, sent) in [
            ("https://app.example.com", "https://app.example.com"),
            ("https://app.example.com/", "https://app.example.com"),
            ("https://App.Example.com:443", "https://app.example.com"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
        ] {
            assert_eq!(origin(written).unwrap(), sent);
        }
        for wrong in [
            "*",
            "null",
            "app.example.com",
            "https://*.example.com",
            "https://app.example.com/page",
            "https://app.example.com?x",
            "https://user@app.example.com",
            "file:///page.html",
            "",
        ] {
            assert!(origin(wrong).unwrap_err().contains("https://app.example.com"), "{wrong}");
        }
    }
}
