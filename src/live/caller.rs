//! Who asks, and what they may see. Pure: signatures, and whether a token has expired, are checked before.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::event::topic::Pattern;

/// Most characters of a subject and of an organization.
const LONGEST: usize = 255;
/// The word of `scope` that makes an operator.
const OPERATOR: &str = "operator";

/// Who asks.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Nobody had to prove anything: the listener is on loopback, and neither a token nor JWT is configured.
    Open,
    /// Has `http.token`.
    Operator,
    /// Has a valid JWT.
    Client(Arc<Claims>),
}

/// What a valid JWT says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `sub`: the user, at most 255 characters.
    pub subject: Option<String>,
    /// `organization` or `all_organizations`: whose events may be seen.
    pub organization: Tenant,
    /// `topics`: patterns of the topics that may be followed directly; without the claim none.
    pub topics: Vec<Pattern>,
    /// `channels`: the channels that may be joined; without the claim none.
    pub channels: Channels,
    /// Whether `scope` has the word `operator`, which makes an operator of who may see all organizations.
    pub is_operator: bool,
    /// `exp`: when the token expires.
    pub expires_at: DateTime<Utc>,
}

/// Whose events may be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenant {
    /// Those of every organization, and those without one.
    All,
    /// Those of this organization.
    One(String),
}

/// Which channels may be joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channels {
    /// Every channel.
    All,
    /// Those with these names.
    Named(BTreeSet<String>),
}

impl Caller {
    /// Whether all of the API may be used.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        match self {
            Self::Open | Self::Operator => true,
            // An operator sees all: who may see one organization is none.
            Self::Client(claims) => claims.is_operator && claims.organization == Tenant::All,
        }
    }

    /// The organization whose events may be seen; none means all of them.
    #[must_use]
    pub fn organization(&self) -> Option<&str> {
        match self {
            Self::Open | Self::Operator => None,
            Self::Client(claims) => match &claims.organization {
                Tenant::All => None,
                Tenant::One(organization) => Some(organization),
            },
        }
    }

    /// Whether an event of this topic may be followed directly. Its organization is not looked at.
    #[must_use]
    pub fn may_follow(&self, event_topic: &str) -> bool {
        match self {
            Self::Open | Self::Operator => true,
            Self::Client(claims) => claims.topics.iter().any(|pattern| pattern.matches(event_topic)),
        }
    }

    /// Whether the channel of this name may be joined.
    #[must_use]
    pub fn may_join(&self, channel: &str) -> bool {
        match self {
            Self::Open | Self::Operator => true,
            Self::Client(claims) => match &claims.channels {
                Channels::All => true,
                Channels::Named(names) => names.contains(channel),
            },
        }
    }

    /// When the caller may see nothing more; none: never.
    #[must_use]
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Open | Self::Operator => None,
            Self::Client(claims) => Some(claims.expires_at),
        }
    }
}

impl Claims {
    /// Reads the claims of a token whose signature is valid. Claims that are not listed above are ignored.
    ///
    /// # Errors
    /// A message that names the claim that is missing or wrong.
    pub fn read(claims: &Map<String, Value>) -> Result<Self, String> {
        // A claim that is null is as good as missing.
        let claim = |name: &str| claims.get(name).filter(|value| !value.is_null());
        let words = claim("scope").map(|scope| scope.as_str().ok_or("scope must be text")).transpose()?;
        Ok(Self {
            subject: claim("sub").map(|subject| short("sub", subject)).transpose()?,
            organization: organization(claim("organization"), claim("all_organizations"))?,
            topics: topics(claim("topics"))?,
            channels: channels(claim("channels"))?,
            is_operator: words.is_some_and(|words| words.split(' ').any(|word| word == OPERATOR)),
            expires_at: expiry(claim("exp"))?,
        })
    }
}

fn organization(one: Option<&Value>, all: Option<&Value>) -> Result<Tenant, String> {
    let all = all.map_or(Ok(false), |all| {
        all.as_bool().ok_or_else(|| "all_organizations must be true or false".to_owned())
    })?;
    match (one, all) {
        (None, true) => Ok(Tenant::All),
        (Some(one), false) => short("organization", one).map(Tenant::One),
        (Some(_), true) => Err("has both organization and all_organizations; remove one of them".to_owned()),
        (None, false) => {
            Err("lacks the claim organization; all_organizations: true would mean every one".to_owned())
        }
    }
}

fn topics(topics: Option<&Value>) -> Result<Vec<Pattern>, String> {
    let parse = |topic: &str| Pattern::parse(topic).map_err(|error| format!("topics: {error}"));
    texts("topics", topics)?.into_iter().map(parse).collect()
}

fn channels(channels: Option<&Value>) -> Result<Channels, String> {
    let names = texts("channels", channels)?;
    if names.contains(&"*") {
        return Ok(Channels::All);
    }
    Ok(Channels::Named(names.into_iter().map(ToOwned::to_owned).collect()))
}

/// The texts of a list; none if there is no such claim.
fn texts<'a>(name: &str, list: Option<&'a Value>) -> Result<Vec<&'a str>, String> {
    let wrong = || format!("{name} must be a list of texts");
    let list = list.map_or(Ok(&[][..]), |list| list.as_array().map(Vec::as_slice).ok_or_else(wrong))?;
    list.iter().map(|item| item.as_str().ok_or_else(wrong)).collect()
}

fn short(name: &str, text: &Value) -> Result<String, String> {
    let fits = |text: &&str| (1..=LONGEST).contains(&text.chars().count());
    let text = text.as_str().filter(fits).map(ToOwned::to_owned);
    text.ok_or_else(|| format!("{name} must be a text of 1 to {LONGEST} characters"))
}

fn expiry(exp: Option<&Value>) -> Result<DateTime<Utc>, String> {
    let exp = exp.ok_or("lacks the claim exp")?;
    let whole = || exp.as_f64().filter(|exp| (0.0..1e15).contains(exp)).map(|exp| exp as i64);
    let seconds = exp.as_i64().filter(|exp| *exp >= 0).or_else(whole);
    let at = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    at.ok_or_else(|| "exp must be a time, in seconds since 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(claims: Value) -> Result<Caller, String> {
        Claims::read(claims.as_object().unwrap()).map(|claims| Caller::Client(Arc::new(claims)))
    }

    /// What a token with these claims beside `organization` and `exp` gives.
    fn acme(more: Value) -> Result<Caller, String> {
        let mut claims = json!({ "organization": "acme", "exp": 2_000_000_000 });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(claims)
    }

    #[test]
    fn who_had_to_prove_nothing_and_who_has_the_token_may_see_all() {
        for caller in [Caller::Open, Caller::Operator] {
            assert!(caller.is_operator() && caller.may_join("board"));
            assert!(
                caller.may_follow("shop.orders.create") && caller.may_follow("outbox.subscription.paused")
            );
            assert_eq!((caller.organization(), caller.expires_at()), (None, None));
        }
    }

    #[test]
    fn without_claims_a_client_sees_nothing_and_is_no_operator() {
        let client = acme(json!({})).unwrap();
        assert!(!client.is_operator() && !client.may_follow("a.b") && !client.may_join("board"));
        assert_eq!(client.organization(), Some("acme"));
        assert_eq!(client.expires_at().unwrap().timestamp(), 2_000_000_000);
        let nothing = json!({ "topics": null, "channels": null, "scope": null, "sub": null });
        let nothing = acme(nothing).unwrap();
        assert!(!nothing.is_operator() && !nothing.may_follow("a.b") && !nothing.may_join("board"));
    }

    #[test]
    fn a_client_follows_the_topics_and_joins_the_channels_of_its_token() {
        let client = acme(json!({ "topics": ["shop.orders.*", "**.paid"], "channels": ["board"] })).unwrap();
        for (topic, may) in [
            ("shop.orders.create", true),
            ("invoice.paid", true),
            ("shop.orders", false),
            ("shop.stock.empty", false),
            ("outbox.paid", false),
        ] {
            assert_eq!(client.may_follow(topic), may, "{topic}");
        }
        assert!(client.may_join("board") && !client.may_join("boar") && !client.may_join("*"));
        let all = acme(json!({ "topics": ["**"], "channels": ["*"] })).unwrap();
        assert!(all.may_join("board") && all.may_follow("a"));
        assert!(
            !all.may_follow("outbox.subscription.paused"),
            "operators' events need a pattern of their own"
        );
        let ours = acme(json!({ "topics": ["outbox.**"] })).unwrap();
        assert!(ours.may_follow("outbox.subscription.paused"));
    }

    #[test]
    fn the_word_operator_of_the_scope_makes_an_operator() {
        for (scope, is_operator) in [
            ("operator", true),
            ("read operator write", true),
            ("operators", false),
            ("read:operator", false),
            ("Operator", false),
            ("", false),
        ] {
            let all = json!({ "all_organizations": true, "scope": scope, "exp": 2_000_000_000 });
            assert_eq!(read(all).unwrap().is_operator(), is_operator, "{scope}");
            assert!(!acme(json!({ "scope": scope })).unwrap().is_operator(), "{scope}");
        }
    }

    #[test]
    fn every_organization_must_be_said() {
        let all = read(json!({ "all_organizations": true, "exp": 2_000_000_000 })).unwrap();
        assert_eq!(all.organization(), None);
        assert!(!all.is_operator());
        assert!(acme(json!({ "all_organizations": false })).is_ok());
    }

    #[test]
    fn a_claim_that_is_missing_or_wrong_is_refused_by_its_name() {
        let long = "x".repeat(256);
        for (claims, named) in [
            (json!({ "organization": null }), "lacks the claim organization"),
            (json!({ "organization": "" }), "organization must be a text"),
            (json!({ "organization": long }), "organization must be a text"),
            (json!({ "organization": 7 }), "organization must be a text"),
            (json!({ "organization": ["acme"] }), "organization must be a text"),
            (json!({ "all_organizations": true }), "both organization and all_organizations"),
            (json!({ "all_organizations": "true" }), "all_organizations must be true or false"),
            (json!({ "sub": long }), "sub must be a text"),
            (json!({ "sub": 7 }), "sub must be a text"),
            (json!({ "topics": "**" }), "topics must be a list"),
            (json!({ "topics": [7] }), "topics must be a list"),
            (json!({ "topics": ["a..b"] }), "topics: \"a..b\" is not a topic pattern"),
            (json!({ "channels": "*" }), "channels must be a list"),
            (json!({ "channels": { "board": true } }), "channels must be a list"),
            (json!({ "scope": ["operator"] }), "scope must be text"),
            (json!({ "exp": null }), "lacks the claim exp"),
            (json!({ "exp": "2033-05-18" }), "exp must be a time"),
            (json!({ "exp": -1 }), "exp must be a time"),
            (json!({ "exp": u64::MAX }), "exp must be a time"),
        ] {
            let refusal = acme(claims.clone()).unwrap_err();
            assert!(refusal.contains(named), "{claims}: {refusal}");
        }
        assert!(acme(json!({ "exp": 2_000_000_000.5 })).is_ok());
    }
}
