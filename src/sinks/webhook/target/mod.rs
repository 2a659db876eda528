//! A webhook subscription's config, checked once, and the request for an event. Sends nothing.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::{
    batch,
    sign::{self, Key},
};
use crate::{
    delivery::duration,
    event::Event,
    sink::{
        Batch, Outgoing,
        body::{self, Body},
        egress::Guard,
        headers_about,
        redact::Redactor,
        secret::Secrets,
    },
};

const CLOUDEVENTS_BATCH: &str = "application/cloudevents-batch+json; charset=utf-8";

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static ID: HeaderName = HeaderName::from_static(sign::ID);
static SIGNATURE: HeaderName = HeaderName::from_static(sign::SIGNATURE);
static TIMESTAMP: HeaderName = HeaderName::from_static(sign::TIMESTAMP);

/// Largest body, in bytes.
pub(super) const LARGEST_BODY: usize = 1024 * 1024;
const LONGEST_URL: usize = 2048;
const MOST_HEADERS: usize = 32;
const LONGEST_HEADER: usize = 4096;
const MOST_SECRETS: usize = 3;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest `timeout`.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers that a subscription may not set: those of the protocol, our own, and those that metadata services
/// accept.
const RESERVED: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "accept-encoding",
    "trailer",
    "upgrade",
    "keep-alive",
    "content-type",
    "content-encoding",
    "user-agent",
    "expect",
    "cookie",
    "traceparent",
    "tracestate",
    "idempotency-key",
];
const RESERVED_PREFIXES: &[&str] =
    &["proxy-", "webhook-", "ce-", "x-amz-", "x-aws-", "x-goog", "x-azure-", "metadata", "pgoutbox-"];

/// A checked webhook config. `Debug` shows the destination, but neither the path nor the values of headers.
pub struct Target {
    pub(super) uri: Uri,
    pub(super) method: Method,
    pub(super) timeout: Duration,
    pub(super) destination: String,
    /// Status codes that are not retried.
    pub(super) dead_letter_on: Vec<u16>,
    /// Secrets to remove from reports: a receiver may send them back.
    pub(super) confidential: Redactor,
    /// Batching, if several events are sent in one request.
    pub(super) batch: Option<Batch>,
    headers: Vec<(HeaderName, HeaderValue)>,
    keys: Vec<Key>,
    body: Body,
}

/// A request before it is signed.
#[derive(Debug)]
pub(super) struct Message {
    /// Id of the request, the same on every attempt.
    pub(super) id: String,
    pub(super) body: Vec<u8>,
    pub(super) headers: HeaderMap,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("destination", &self.destination)
            .field("method", &self.method)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("signatures", &self.keys.len())
            .field("body", &self.body)
            .field("batch", &self.batch)
            .field("timeout", &self.timeout)
            .field("dead_letter_on", &self.dead_letter_on)
            .finish_non_exhaustive()
    }
}

impl Target {
    pub(super) fn parse(config: &Value, guard: &Guard, secrets: &Secrets) -> Result<Self, String> {
        let fields = config.as_object().ok_or("config: must be an object with a url")?;
        let url = fields.get("url").ok_or("config.url: missing; set the address for the requests")?;
        let url = parse_url(url, guard)?;
        let port = url.port_or_known_default().unwrap_or_default();
        let destination = format!("{}://{}:{port}", url.scheme(), url.host_str().unwrap_or_default());
        let uri = Uri::try_from(url.as_str()).map_err(|problem| format!("config.url: {problem}"))?;
        let mut target = Self {
            uri,
            method: Method::POST,
            timeout: DEFAULT_TIMEOUT,
            destination,
            dead_letter_on: Vec::new(),
            confidential: Redactor::default(),
            batch: None,
            headers: Vec::new(),
            keys: Vec::new(),
            body: Body::Standard,
        };
        for (name, value) in fields {
            match name.as_str() {
                "url" => {}
                "method" => target.method = parse_method(value)?,
                "headers" => target.parse_headers(value, secrets)?,
                "secret" => target.parse_secrets(value, secrets)?,
                "body" => target.body = parse_body(value)?,
                "batch" => target.batch = Some(batch::parse(value)?),
                "timeout" => target.timeout = parse_timeout(value)?,
                "dead_letter_on" => target.dead_letter_on = parse_dead_letter_on(value)?,
                _ => {
                    return Err(format!(
                        "config.{}: unknown field; a webhook has url, method, headers, secret, body, batch, \
                                                 timeout, dead_letter_on",
                        name.escape_debug()
                    ));
                }
            }
        }
        if target.batch.is_some() && !matches!(target.body, Body::Standard | Body::CloudEvents) {
            return Err("config.batch: only the bodies standard and cloudevents support batches".to_owned());
        }
        Ok(target)
    }

    fn parse_headers(&mut self, value: &Value, secrets: &Secrets) -> Result<(), String> {
        let fields = value.as_object().ok_or("config.headers: must be an object of strings")?;
        if fields.len() > MOST_HEADERS {
            return Err(format!("config.headers: {} headers; at most {MOST_HEADERS}", fields.len()));
        }
        for (name, value) in fields {
            let field = format!("config.headers.{}", name.escape_debug());
            let name =
                HeaderName::try_from(name).map_err(|_| format!("{field}: not a valid name of a header"))?;
            if RESERVED.contains(&name.as_str())
                || RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
            {
                return Err(format!("{field}: this header is reserved; remove it"));
            }
            if self.headers.iter().any(|(taken, _)| *taken == name) {
                return Err(format!("{field}: set twice, in different cases"));
            }
            let text = value.as_str().ok_or_else(|| format!("{field}: its value must be a string"))?;
            let text = if Secrets::is_reference(text) {
                let secret = secrets.resolve(text).map_err(|problem| format!("{field}: {problem}"))?;
                self.confidential.add(&secret);
                secret
            } else {
                SecretString::from(text)
            };
            if text.expose_secret().len() > LONGEST_HEADER {
                return Err(format!("{field}: its value is longer than {LONGEST_HEADER} bytes"));
            }
            let mut value = HeaderValue::try_from(text.expose_secret())
                .map_err(|_| format!("{field}: its value has a line break or another control character"))?;
            value.set_sensitive(true);
            self.headers.push((name, value));
        }
        Ok(())
    }

    fn parse_secrets(&mut self, value: &Value, secrets: &Secrets) -> Result<(), String> {
        let shape = || {
            format!("config.secret: must be 1 to {MOST_SECRETS} references such as env:PGOUTBOX_SECRET_NAME")
        };
        let references = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(references) if (1..=MOST_SECRETS).contains(&references.len()) => references,
            _ => return Err(shape()),
        };
        for reference in references {
            let reference = reference.as_str().ok_or_else(shape)?;
            let active = secrets
                .resolve_for_signing(reference)
                .map_err(|problem| format!("config.secret: {problem}"))?;
            for (place, secret) in active.iter().enumerate() {
                self.confidential.add(secret);
                match Key::parse(secret) {
                    Ok(key) => self.keys.push(key),
                    // It was replaced, and signed nothing.
                    Err(_) if place > 0 => {}
                    Err(problem) => return Err(format!("config.secret: {reference:?}: {problem}")),
                }
            }
        }
        Ok(())
    }

    /// The request for these deliveries: for one, or for several if the target has a batch. Payloads are
    /// copied, never parsed.
    ///
    /// # Errors
    /// The size of the body in bytes, if it is above [`LARGEST_BODY`].
    pub(super) fn message(&self, deliveries: &[Outgoing]) -> Result<Message, usize> {
        let mut headers = HeaderMap::with_capacity(16 + self.headers.len());
        let (id, body) = match (deliveries, self.batch) {
            ([one], None) => {
                if self.body == Body::CloudEventsBinary {
                    insert_attributes(&mut headers, &one.event);
                }
                insert_trace(&mut headers, &one.event.headers);
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.body.content_type()));
                (one.event.id, self.body.of(&one.event))
            }
            (several, _) => {
                let content_type =
                    if self.body == Body::CloudEvents { CLOUDEVENTS_BATCH } else { self.body.content_type() };
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                (batch::id(several), batch::body(self.body, several))
            }
        };
        for (name, value) in headers_about(deliveries) {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if body.len() > LARGEST_BODY {
            Err(body.len())
        } else {
            Ok(Message { id: id.to_string(), body, headers })
        }
    }

    /// The headers and the body of one attempt. `now` is in seconds since 1970.
    pub(super) fn sign(&self, message: Message, now: i64) -> (HeaderMap, Vec<u8>) {
        let Message { id, body, mut headers } = message;
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("pgoutbox/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let id_value = HeaderValue::from_str(&id).expect("a UUID is a header value");
        headers.insert(&IDEMPOTENCY_KEY, id_value.clone());
        headers.insert(&ID, id_value);
        let timestamp = HeaderValue::from(now);
        if let Some(signature) =
            timestamp.to_str().ok().and_then(|timestamp| sign::sign(&self.keys, &id, timestamp, &body))
        {
            headers.insert(&SIGNATURE, signature);
        }
        headers.insert(&TIMESTAMP, timestamp);
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        (headers, body)
    }

    /// The lines before the body of a request with these headers, as people are shown them.
    pub(super) fn head(&self, headers: &HeaderMap) -> Vec<String> {
        let value =
            |value: &HeaderValue| self.confidential.redact(&String::from_utf8_lossy(value.as_bytes()), false);
        std::iter::once(format!("{} {}", self.method, self.uri))
            .chain(headers.iter().map(|(name, text)| format!("{name}: {}", value(text))))
            .collect()
    }
}

fn parse_url(value: &Value, guard: &Guard) -> Result<Url, String> {
    let text = value.as_str().ok_or("config.url: must be a string")?;
    if text.len() > LONGEST_URL {
        return Err(format!("config.url: it is longer than {LONGEST_URL} bytes"));
    }
    let url = Url::parse(text).map_err(|problem| format!("config.url: {problem}"))?;
    guard.check_url(&url)?;
    Ok(url)
}

fn parse_method(value: &Value) -> Result<Method, String> {
    match value.as_str() {
        Some("POST") => Ok(Method::POST),
        Some("PUT") => Ok(Method::PUT),
        Some("PATCH") => Ok(Method::PATCH),
        _ => Err("config.method: must be POST, PUT or PATCH".to_owned()),
    }
}

fn parse_body(value: &Value) -> Result<Body, String> {
    Body::deserialize(value).map_err(|_| format!("config.body: must be one of {}", Body::NAMES.join(", ")))
}

fn parse_timeout(value: &Value) -> Result<Duration, String> {
    let text = value.as_str().ok_or("config.timeout: must be a string with a unit, such as 15s")?;
    let timeout = duration::parse(text).map_err(|problem| format!("config.timeout: {problem}"))?;
    if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
        return Err("config.timeout: must be above 0 and at most 60s".to_owned());
    }
    Ok(timeout)
}

fn parse_dead_letter_on(value: &Value) -> Result<Vec<u16>, String> {
    let shape = || {
        "config.dead_letter_on: must be a list of status codes from 400 to 499 except 408, 410, 425 and 429"
            .to_owned()
    };
    let codes = value.as_array().ok_or_else(shape)?;
    codes
        .iter()
        .map(|code| match code.as_u64() {
            Some(408 | 410 | 425 | 429) => Err(shape()),
            Some(code @ 400..=499) => u16::try_from(code).map_err(|_| shape()),
            _ => Err(shape()),
        })
        .collect()
}

/// Adds the attributes of a CloudEvent in binary mode. All but printable ASCII is percent-encoded, as the
/// HTTP binding requires.
fn insert_attributes(headers: &mut HeaderMap, event: &Event) {
    for (name, value) in body::cloudevents_attributes(event) {
        if matches!(name, "traceparent" | "tracestate") {
            continue; // set as headers without the prefix
        }
        let mut encoded = String::with_capacity(value.len());
        for byte in value.bytes() {
            if matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'%') {
                encoded.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(format!("ce-{name}")), HeaderValue::try_from(encoded))
        {
            headers.insert(name, value);
        }
    }
}

/// Copies the publisher's trace, if it is valid W3C Trace Context. Most events have none, so the text is
/// searched first.
fn insert_trace(headers: &mut HeaderMap, event_headers: &str) {
    #[derive(Deserialize)]
    struct Trace {
        traceparent: String,
        tracestate: Option<String>,
    }
    if !event_headers.contains("\"traceparent\"") {
        return;
    }
    let Ok(trace) = serde_json::from_str::<Trace>(event_headers) else { return };
    if !is_traceparent(&trace.traceparent) {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(trace.traceparent) {
        headers.insert(HeaderName::from_static("traceparent"), value);
    }
    let state = trace.tracestate.filter(|state| {
        !state.is_empty() && state.len() <= 512 && state.bytes().all(|byte| (0x20..0x7f).contains(&byte))
    });
    if let Some(value) = state.and_then(|state| HeaderValue::try_from(state).ok()) {
        headers.insert(HeaderName::from_static("tracestate"), value);
    }
}

fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let parts: Vec<_> = text.split('-').collect();
    match *parts.as_slice() {
        ["00", trace, span, flags] => {
            (trace.len(), span.len(), flags.len()) == (32, 16, 2)
                && [trace, span, flags].into_iter().all(is_hex)
                && !is_zero(trace)
                && !is_zero(span)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
