//! JSON Web Tokens (RFC 7519): their signature, their time, issuer and audience. What they allow is in
//! `live/caller.rs`.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    keys::Keys,
    remote::{Missing, Remote},
    ring,
};
use crate::live::caller::Claims;

/// Seconds by which the clock of who makes a token may be ahead: a token may be used so long before its
/// `nbf`. After `exp` no time is given, because live connections end there.
const AHEAD: u64 = 60;

/// `[http.jwt]`: whose tokens are valid.
#[derive(Debug, Clone, Default)]
pub struct Jwt {
    /// Secret of tokens with HS256.
    pub secret: Option<SecretString>,
    /// Public keys of tokens with RS256 and ES256.
    pub jwks: Option<Jwks>,
    /// `iss` that tokens must have; none: any, or no `iss`.
    pub issuer: Option<String>,
    /// `aud` that tokens must have; none: tokens must have no `aud`.
    pub audience: Option<String>,
}

/// Where public keys come from.
#[derive(Debug, Clone)]
pub enum Jwks {
    /// Keys that were read from a file.
    File(Arc<Keys>),
    /// Keys that are fetched.
    Url(Arc<Remote>),
}

/// Why a token is refused. Holds no part of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What is wrong with the token.
    Invalid(String),
    /// It cannot be judged now: the keys cannot be fetched.
    Unjudged,
}

impl From<&str> for Refusal {
    fn from(problem: &str) -> Self {
        Self::Invalid(problem.to_owned())
    }
}

/// Verifies tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    secret: Option<DecodingKey>,
    settings: Jwt,
}

impl Verifier {
    pub(super) fn new(settings: Jwt) -> Self {
        ring::install();
        let secret = settings.secret.as_ref();
        let secret = secret.and_then(|one| DecodingKey::from_secret(one.expose_secret().as_bytes()).ok());
        Self { secret, settings }
    }

    /// Keeps the keys fresh until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken) {
        if let Some(Jwks::Url(remote)) = &self.settings.jwks {
            remote.follow(shutdown).await;
        }
    }

    /// The claims of a token, if it is valid now.
    pub(super) async fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        let header = decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::Json(_) => "its header cannot be read, or its algorithm is unknown or none",
            _ => "it is not a JWT",
        })?;
        // The algorithm decides which key it is, so that a public key is never taken for a secret.
        let key = match header.alg {
            Algorithm::HS256 => self.secret.clone().ok_or("HS256 needs http.jwt.secret")?,
            Algorithm::RS256 | Algorithm::ES256 => self.key(header.kid.as_deref(), header.alg).await?,
            _ => return Err("its algorithm must be HS256, RS256 or ES256".into()),
        };
        let verified = decode::<Map<String, Value>>(token, &key, &self.validation(header.alg));
        let claims = verified.map_err(|error| Refusal::Invalid(problem(error.kind())))?.claims;
        let claims = Claims::read(&claims).map_err(|problem| Refusal::Invalid(format!("it {problem}")))?;
        if claims.expires_at.timestamp() <= now() {
            return Err("it has expired".into());
        }
        Ok(claims)
    }

    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, Refusal> {
        let found = match &self.settings.jwks {
            None => return Err("RS256 and ES256 need http.jwt.jwks".into()),
            Some(Jwks::File(keys)) => keys.find(id, algorithm).cloned().ok_or(Missing::Unknown),
            Some(Jwks::Url(remote)) => remote.find(id, algorithm).await,
        };
        found.map_err(|missing| match (missing, id) {
            (Missing::Unfetched, _) => Refusal::Unjudged,
            (Missing::Unknown, Some(_)) => "http.jwt.jwks has no key with its kid and algorithm".into(),
            (Missing::Unknown, None) => {
                "it has no kid, and http.jwt.jwks does not have exactly one key for its algorithm".into()
            }
        })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = AHEAD;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.settings.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// Seconds since 1970, by this machine: the database is not asked about requests.
fn now() -> i64 {
    i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap_or(i64::MAX)
}

fn problem(kind: &ErrorKind) -> String {
    let problem = match kind {
        ErrorKind::InvalidSignature => "its signature does not fit",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "its time (nbf) has not come",
        ErrorKind::InvalidIssuer => "its issuer (iss) is not http.jwt.issuer",
        ErrorKind::InvalidAudience => "its audience (aud) is not http.jwt.audience",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => "its algorithm does not fit the key",
        ErrorKind::MissingRequiredClaim(claim) => return format!("it lacks the claim {claim}"),
        ErrorKind::InvalidClaimFormat(claim) => return format!("its claim {claim} has another type"),
        _ => "it is not a JWT",
    };
    problem.to_owned()
}
