//! The messages of live clients, and why something is refused.

use serde::{Deserialize, Serialize};

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Follow events.
    Subscribe(Subscribe),
    /// Follow them no longer.
    Unsubscribe(Named),
    /// The events up to this token are handled.
    Ack(Ack),
    /// Is anybody there.
    Ping {},
}

/// Which events a client wants, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// The client's name for it: 1 to 64 characters.
    #[serde(default)]
    pub id: String,
    /// Topic patterns, at most 100; none: a channel is named.
    #[serde(default)]
    pub topics: Option<Vec<String>>,
    /// Name of a channel.
    #[serde(default)]
    pub channel: Option<String>,
    /// Prefixes of keys, at most 100; none: any key.
    #[serde(default)]
    pub keys: Option<Vec<String>>,
    /// Condition in CEL.
    #[serde(default)]
    pub filter: Option<String>,
    /// Token after which it goes on, or a time (RFC 3339) from which it begins.
    #[serde(default)]
    pub since: Option<String>,
    /// Whether the newest event of each key comes first.
    #[serde(default)]
    pub snapshot: bool,
    /// Most events that are sent and not acknowledged; none: no limit.
    #[serde(default)]
    pub max_unacked: Option<u32>,
}

/// Names a subscription of the client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The client's name for it.
    pub id: String,
}

/// Up to where the events of a subscription are handled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The client's name for the subscription.
    pub id: String,
    /// Token of the last event that is handled.
    pub token: String,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Why something is refused. The word is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])* $name,)*
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Meaning, as one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// It is no message, or a field of it is wrong.
    BadMessage,
    /// There is no message of this type.
    UnknownType,
    /// The connection has a subscription of this id.
    DuplicateId,
    /// The connection has no subscription of this id.
    UnknownId,
    /// There is no channel of this name for this client.
    UnknownChannel,
    /// The client's token does not permit it.
    Forbidden,
    /// Only channels may be followed here.
    ChannelsOnly,
    /// The connection has as many subscriptions as it may have.
    TooManySubscriptions,
    /// A topic pattern or a key is wrong.
    BadTopics,
    /// The filter is wrong.
    BadFilter,
    /// It is no token and no time, or no event that waits for an ack has this token.
    BadToken,
    /// Events behind the token, or since the time, were removed.
    TokenTooOld,
    /// The token is of another database, or the database was set back since.
    OtherDatabase,
    /// There are too many keys, bytes or events for a snapshot.
    SnapshotTooLarge,
    /// The database does not answer, or the channel is paused or invalid: try again later.
    Unavailable,
    /// An event cannot be read, and is left out.
    UnreadableEvent,
    /// A filter or a transform cannot be evaluated for an event, which is left out.
    FilterFailed,
}

/// A refusal: what is wrong, and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The kind.
    pub code: Code,
    /// A sentence that names the field and the fix.
    pub reason: String,
}

impl Refusal {
    pub(super) fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// A message that is no text.
    #[must_use]
    pub fn text_only() -> Self {
        Self::new(Code::BadMessage, "messages are JSON as text")
    }
}

impl Code {
    /// The word that clients see.
    #[must_use]
    pub fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Request {
    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Refusal::new(Code::BadMessage, format!("the message is not JSON: {error}")))?;
        let kind = value.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
        if !["subscribe", "unsubscribe", "ack", "ping"].contains(&kind) {
            let reason = "type: use subscribe, unsubscribe, ack or ping";
            return Err(Refusal::new(Code::UnknownType, reason));
        }
        serde_json::from_value(value).map_err(|error| Refusal::new(Code::BadMessage, error.to_string()))
    }
}

/// The message of a refusal; `id` is that of the subscription it is about.
#[must_use]
pub fn error_message(id: Option<&str>, refusal: &Refusal) -> String {
    let mut message = serde_json::json!({ "type": "error" });
    if let Some(id) = id {
        message["id"] = id.into();
    }
    message["code"] = refusal.code.word().into();
    message["reason"] = refusal.reason.as_str().into();
    message.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_what_is_wrong_is_named() {
        let subscribe = r#"{"type":"subscribe","id":"a","topics":["x.*"],"since":"t","max_unacked":5}"#;
        let Request::Subscribe(subscribe) = Request::parse(subscribe).unwrap() else { panic!() };
        assert_eq!((subscribe.id.as_str(), subscribe.max_unacked), ("a", Some(5)));
        assert_eq!(Request::parse(r#"{"type":"ping"}"#), Ok(Request::Ping {}));
        for (text, code, word) in [
            ("{", Code::BadMessage, "JSON"),
            ("[]", Code::UnknownType, "subscribe"),
            (r#"{"type":"publish"}"#, Code::UnknownType, "subscribe"),
            (r#"{"type":"subscribe","id":"a","topic":"x"}"#, Code::BadMessage, "topic"),
            (r#"{"type":"unsubscribe"}"#, Code::BadMessage, "id"),
        ] {
            let refusal = Request::parse(text).unwrap_err();
            assert!(refusal.code == code && refusal.reason.contains(word), "{text}: {refusal:?}");
        }
        let refusal = Refusal::new(Code::TokenTooOld, "since: …");
        assert_eq!(
            error_message(Some("a"), &refusal),
            r#"{"code":"token_too_old","id":"a","reason":"since: …","type":"error"}"#
        );
    }
}
