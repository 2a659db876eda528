//! Who asks, and what they may see.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};

use crate::event::topic::Pattern;

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

/// What a JWT grants.
#[derive(Debug, Clone)]
pub struct Claims {
    /// Who it is: at most 255 characters.
    pub subject: Option<String>,
    /// Whose events it may see.
    pub organization: Tenant,
    /// Topics that it may follow itself.
    pub topics: Vec<Pattern>,
    /// Channels that it may join.
    pub channels: Channels,
    /// Whether it may do what an operator may.
    pub is_operator: bool,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// Whose events somebody may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenant {
    /// Those of all organizations, and those of none.
    All,
    /// Those of this organization.
    One(String),
}

/// Channels that somebody may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channels {
    /// Every channel.
    All,
    /// These.
    Named(BTreeSet<String>),
}

impl Caller {
    /// Whether it may do what an operator may.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        match self {
            Self::Open | Self::Operator => true,
            Self::Client(claims) => claims.is_operator,
        }
    }

    /// The organization whose events it may see; none: all.
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

    /// Whether it may follow events of this topic.
    #[must_use]
    pub fn may_follow(&self, topic: &str) -> bool {
        match self {
            Self::Open | Self::Operator => true,
            Self::Client(claims) => claims.topics.iter().any(|pattern| pattern.matches(topic)),
        }
    }

    /// Whether it may join this channel.
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

    /// When it is no longer valid; none: never.
    #[must_use]
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Open | Self::Operator => None,
            Self::Client(claims) => Some(claims.expires_at),
        }
    }
}
