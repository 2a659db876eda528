//! Refusals and failures as problem details (RFC 9457). Names no secret and shows no cause that only the log
//! should have.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::admin::{self, Why};

/// Declares the closed set of kinds, each with its code, status, title, and when to try again in seconds.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $status:ident, $again:expr;)*) => {
        /// What kind of problem it is. The codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $($(#[doc = $doc])* $name,)* }

        impl Kind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Stable value of `type`.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => concat!("/problems/", $code),)* }
            }

            /// HTTP status.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// Meaning, as one sentence; `title` of the problem.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii(),)* }
            }

            /// Seconds of `Retry-After`, if the same request may succeed later.
            const fn again(self) -> Option<u32> {
                match self { $(Self::$name => $again,)* }
            }
        }
    };
}

kinds! {
    /// the path, the query or the body cannot be read
    BadRequest = "bad-request", BAD_REQUEST, None;
    /// the login of this process lacks rights in the database; `detail` names the grant
    NoRights = "no-rights", FORBIDDEN, None;
    /// there is no such thing, or no such path
    NotFound = "not-found", NOT_FOUND, None;
    /// the path does not allow this method
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, None;
    /// it contradicts what is there
    Conflict = "conflict", CONFLICT, None;
    /// the body is too large
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, None;
    /// the body must be `application/json`
    NotJson = "not-json", UNSUPPORTED_MEDIA_TYPE, None;
    /// a value is refused; `field` names it
    Invalid = "invalid", UNPROCESSABLE_ENTITY, None;
    /// something failed that should not; the log says what
    Failed = "failed", INTERNAL_SERVER_ERROR, None;
    /// all connections of the API are in use, or somebody has locked a row
    Busy = "busy", SERVICE_UNAVAILABLE, Some(1);
    /// it took too long
    Late = "late", SERVICE_UNAVAILABLE, Some(5);
    /// the database cannot be reached, or cannot be written
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, Some(5);
    /// the database is not migrated
    NotMigrated = "not-migrated", SERVICE_UNAVAILABLE, Some(30);
}

/// Why a request was not done (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Stable code of the kind of problem, such as `/problems/not-found`.
    pub r#type: &'static str,
    /// Meaning of the code.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The parameter or the field of the body that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(skip)]
    #[schema(ignore)]
    kind: Kind,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            r#type: kind.code(),
            title: kind.meaning(),
            status: kind.status().as_u16(),
            detail: detail.into(),
            hint: None,
            field: None,
            kind,
        }
    }

    /// Names the parameter or the field that is wrong.
    #[must_use]
    pub fn field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// There is nothing of this name or id.
    pub fn no_such(what: &str, which: impl std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("there is no {what} {which}"))
    }

    /// The problem of a path that names what is not there: the database says so in the same words for every
    /// verb.
    #[must_use]
    pub fn or_not_found(self) -> Self {
        let missing = ["subscription", "replay", "event"];
        let says = |what| self.detail.contains(&format!("there is no {what} "));
        if self.kind != Kind::Invalid || !missing.into_iter().any(says) {
            return self;
        }
        let Self { detail, hint, .. } = self;
        Self { hint, ..Self::new(Kind::NotFound, detail) }
    }

    /// The same for a field: messages of the database begin with its name.
    fn of_refusal(kind: Kind, message: &str, hint: Option<&str>) -> Self {
        let problem = Self::new(kind, message);
        let is_name = |text: &str| {
            let is_letter = |letter: char| letter.is_ascii_lowercase() || "_.".contains(letter);
            !text.is_empty() && text.chars().all(is_letter)
        };
        let field = message.split_once(": ").map(|(field, _)| field).filter(|field| is_name(field));
        Self { field: field.map(ToOwned::to_owned), hint: hint.map(ToOwned::to_owned), ..problem }
    }

    /// A value is refused before the database sees it, in words that begin with the field.
    pub fn invalid(message: &str) -> Self {
        Self::of_refusal(Kind::Invalid, message, None)
    }
}

impl From<admin::Error> for Problem {
    fn from(error: admin::Error) -> Self {
        let why = error.why();
        if let (admin::Error::Refused { message, hint, .. }, Why::Input | Why::Conflict) = (&error, why) {
            let kind = if why == Why::Conflict { Kind::Conflict } else { Kind::Invalid };
            return Self::of_refusal(kind, message, hint.as_deref());
        }
        if let admin::Error::Denied { message, hint } = &error {
            return Self::new(Kind::NoRights, message).hint(hint);
        }
        let text = error.to_string();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        match why {
            Why::Migration => Self::new(Kind::NotMigrated, text),
            Why::Locked => Self::new(Kind::Busy, format!("{text}: somebody else has locked a row")),
            Why::Late => {
                let hint = "ask for less: a filter, or a smaller limit";
                Self::new(Kind::Late, format!("{text}: the database took too long")).hint(hint)
            }
            Why::Away => {
                tracing::warn!(error = text, cause, "a request found no database");
                Self::new(Kind::Unavailable, text)
            }
            Why::Rights | Why::Input | Why::Conflict | Why::Unexpected => {
                tracing::error!(error = text, cause, "a request failed");
                Self::new(Kind::Failed, format!("{text} failed; the log of the relay says why"))
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut answer = super::answer::json(self.kind.status(), "application/problem+json", &self);
        if let Some(seconds) = self.kind.again() {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}
