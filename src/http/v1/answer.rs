//! What is answered: the objects that the command line prints with `--json`, and pages of them.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use super::problem::{Kind, Problem};
use crate::event::harmless::escaped_json;

/// What a handler returns.
pub(super) type Answer<T> = Result<Json<T>, Problem>;

/// Rows of a page, if the request does not say how many.
const USUAL: i32 = 100;
/// Most rows of a page.
pub const MOST: i32 = 1_000;

/// An answer of JSON.
#[derive(Debug)]
pub(super) struct Json<T> {
    status: StatusCode,
    location: Option<String>,
    body: T,
}

impl<T> Json<T> {
    /// What was asked for.
    pub(super) fn ok(body: T) -> Self {
        Self { status: StatusCode::OK, location: None, body }
    }

    /// What was made, and its path.
    pub(super) fn created(location: String, body: T) -> Self {
        Self { status: StatusCode::CREATED, location: Some(location), body }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut answer = json(self.status, "application/json", &self.body);
        let location = self.location.and_then(|path| HeaderValue::try_from(path).ok());
        answer.headers_mut().extend(location.map(|path| (header::LOCATION, path)));
        answer
    }
}

/// An answer that no cache keeps. What strangers wrote controls no terminal.
pub(super) fn json(status: StatusCode, kind: &'static str, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => {
            let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
            (status, headers, escaped_json(&text)).into_response()
        }
        // What is in the database is JSON, so this is a mistake of this program.
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T: ToSchema> {
    /// The rows.
    pub(super) items: Vec<T>,
    /// Value of `cursor` for the next page; null: there is none.
    pub(super) next: Option<String>,
}

/// How many rows a page has, from `limit`.
pub(super) fn limit(asked: Option<i32>) -> Result<i32, Problem> {
    match asked.unwrap_or(USUAL) {
        limit @ 1..=MOST => Ok(limit),
        _ => Err(Problem::new(Kind::BadRequest, format!("limit must be 1 to {MOST}")).field("limit")),
    }
}

/// The place where a page ends, from `cursor`. `list` is the word for the list that it is of.
pub(super) fn place<P: DeserializeOwned>(list: &str, cursor: Option<&str>) -> Result<Option<P>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    let read = URL_SAFE_NO_PAD.decode(cursor).ok();
    let read = read.and_then(|bytes| serde_json::from_slice::<(String, P)>(&bytes).ok());
    match read {
        Some((of, place)) if of == list => Ok(Some(place)),
        _ => {
            let why = format!("cursor must be the `next` of a page of {list}");
            Err(Problem::new(Kind::BadRequest, why).field("cursor"))
        }
    }
}

/// The `cursor` of what comes after this place.
pub(super) fn cursor<P: Serialize>(list: &str, place: &P) -> Option<String> {
    serde_json::to_vec(&(list, place)).ok().map(|text| URL_SAFE_NO_PAD.encode(text))
}

/// A page of so many rows, of which one more was read than it holds.
pub(super) fn page<R, T: ToSchema + From<R>, P: Serialize>(
    list: &str,
    mut rows: Vec<R>,
    limit: i32,
    place: impl Fn(&R) -> P,
) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or_default();
    let is_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| is_more).and_then(|last| cursor(list, &place(last)));
    Page { items: rows.into_iter().map(Into::into).collect(), next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_fits_its_own_list_only() {
        let written = cursor("events", &7).unwrap();
        assert_eq!(place::<i64>("events", Some(&written)).unwrap(), Some(7));
        for wrong in [written.as_str(), "", "!", "WyJldmVudHMiXQ"] {
            let refused = place::<i64>("replays", Some(wrong)).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some("cursor"), "{wrong}");
        }
        assert_eq!(place::<i64>("events", None).unwrap(), None);
    }
}
