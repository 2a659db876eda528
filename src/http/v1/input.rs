//! What a request says: its path, query and body, and who asked. What is wrong is named with its field.

use axum::{
    RequestPartsExt as _,
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use serde::de::DeserializeOwned;

use super::problem::{Kind, Problem};
use crate::{event::topic::Pattern, live::caller::Caller};

/// Largest body, in bytes.
pub const LARGEST: usize = 64 * 1024;
/// Largest body with an event: a payload of 256 KiB, also where most of it is escaped.
pub const LARGEST_EVENT: usize = 1024 * 1024;

/// Who asked, if the guard knows.
#[derive(Debug, Clone)]
pub(super) struct Who(pub(super) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let subject = match parts.extensions.get::<Caller>() {
            Some(Caller::Client(claims)) => claims.subject.clone(),
            _ => None,
        };
        Ok(Self(subject))
    }
}

/// A part of the path.
#[derive(Debug)]
pub(super) struct Segment<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send + 'static> FromRequestParts<S> for Segment<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let read = parts.extract::<axum::extract::Path<T>>().await;
        read.map(|path| Self(path.0))
            .map_err(|error| Problem::new(Kind::BadRequest, format!("path: {}", error.body_text())))
    }
}

/// The query.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send + 'static> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let read = parts.extract::<axum::extract::Query<T>>().await;
        read.map(|query| Self(query.0)).map_err(|error| {
            let text = error.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            let path = text.split_once(": ").map_or("", |(path, _)| path);
            named(Problem::new(Kind::BadRequest, format!("query: {text}")), path, text)
        })
    }
}

/// A body of JSON with at most 64 KiB.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Self::Rejection> {
        parsed(&read(request, LARGEST).await?).map(Self)
    }
}

/// A body of JSON with an event.
#[derive(Debug)]
pub(super) struct EventBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for EventBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Self::Rejection> {
        parsed(&read(request, LARGEST_EVENT).await?).map(Self)
    }
}

async fn read(request: Request, most: usize) -> Result<axum::body::Bytes, Problem> {
    if !is_json(request.headers()) {
        // A form of a web page can send other types without asking first.
        let why = "send the body as JSON, with the header Content-Type: application/json";
        return Err(Problem::new(Kind::NotJson, why));
    }
    let body = to_bytes(request.into_body(), most).await;
    body.map_err(|error| {
        let cause = std::error::Error::source(&error);
        let is_long = cause.is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if is_long {
            Problem::new(Kind::TooLarge, format!("the body may have {} KiB", most / 1024))
        } else {
            Problem::new(Kind::BadRequest, "the body did not arrive as a whole")
        }
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// The value of a JSON text.
pub(super) fn parsed<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, what) = (error.path().to_string(), error.inner().to_string());
        named(Problem::new(Kind::BadRequest, format!("body: {what}")), &path, &what)
    })?;
    reader.end().map_err(|error| Problem::new(Kind::BadRequest, format!("body: {error}")))?;
    Ok(value)
}

/// Names the field: where reading ended, or what the message says is missing or unknown.
fn named(problem: Problem, path: &str, message: &str) -> Problem {
    let said = ["unknown field `", "missing field `", "duplicate field `"]
        .into_iter()
        .find_map(|before| message.split_once(before)?.1.split_once('`'))
        .map(|(field, _)| field);
    let is_path = |path: &&str| {
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "_.[]".contains(letter);
        !path.is_empty() && *path != "." && *path != "?" && path.chars().all(is_letter)
    };
    match said.or(Some(path).filter(is_path)) {
        Some(field) => problem.field(field),
        None => problem,
    }
}

/// Refuses what is no topic pattern.
pub(super) fn check_pattern(topic: Option<&str>) -> Result<(), Problem> {
    let Some(Err(error)) = topic.map(Pattern::parse) else { return Ok(()) };
    Err(Problem::invalid(&format!("topic: {error}")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Given {
        name: String,
        keys: Vec<String>,
    }

    #[test]
    fn what_is_wrong_with_a_body_is_named() {
        for (text, field) in [
            (r#"{"name": 1, "keys": []}"#, Some("name")),
            (r#"{"name": "a", "keys": ["a", 2]}"#, Some("keys[1]")),
            (r#"{"name": "a"}"#, Some("keys")),
            (r#"{"name": "a", "keys": [], "kez": 1}"#, Some("kez")),
            ("{", None),
            ("", None),
            (r#"{"name": "a", "keys": []} 1"#, None),
        ] {
            let refused = parsed::<Given>(text.as_bytes()).unwrap_err();
            assert_eq!(refused.field.as_deref(), field, "{text}: {refused:?}");
            assert_eq!(refused.status, 400);
        }
        assert!(parsed::<Given>(br#" {"name": "a", "keys": []} "#).is_ok());
    }
}
