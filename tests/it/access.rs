//! Who may ask for what over HTTP: tokens and their claims, keys and where they come from, origins of pages.

mod keys;
mod pages;

use std::{fs, sync::Arc, time::Duration};

use pgoutbox::http::{Jwks, Jwt, Keys, Settings};
use serde_json::{Value, json};

use crate::{
    http::{Running, running},
    support::tokens::{Signer, claims, jwks, now, token},
};

/// Deadline of every wait in this file.
const DEADLINE: Duration = Duration::from_secs(20);
/// A path for every caller. What it answers to somebody who may ask is not looked at here.
const LIVE: &str = "/v1/ws";
/// A path for operators.
const METRICS: &str = "/metrics";
const SECRET: &str = "a secret of at least 32 bytes, as RFC 7518 asks for";

async fn started(settings: Settings) -> Running {
    running(false, "127.0.0.1:0", settings, Ok(())).await
}

async fn with_jwt(jwt: Jwt) -> Running {
    started(Settings { jwt: Some(jwt), ..Settings::default() }).await
}

fn secret() -> Jwt {
    Jwt { secret: Some(SECRET.into()), ..Jwt::default() }
}

fn of_file(keys: &[Value]) -> Jwt {
    let keys = Keys::parse(jwks(keys).as_bytes()).unwrap();
    Jwt { jwks: Some(Jwks::File(Arc::new(keys))), ..Jwt::default() }
}

/// Status of an answer that did not come.
const NO_ANSWER: u16 = 1;

/// The whole answer to a request with a token.
async fn answer(server: &Running, path: &str, token: &str) -> String {
    server.get(path, &[&format!("Authorization: Bearer {token}")]).await
}

/// The status that says whether a token lets its bearer in; 0: it does.
async fn refusal(server: &Running, path: &str, token: &str) -> u16 {
    let answer = answer(server, path, token).await;
    // One server may follow another meanwhile.
    let Some(status) = answer.split(' ').nth(1) else { return NO_ANSWER };
    let status: u16 = status.parse().unwrap();
    if [401, 403, 503].contains(&status) { status } else { 0 }
}

#[tokio::test]
async fn a_client_may_ask_for_live_events_and_only_an_operator_for_the_rest() {
    let settings = Settings { token: Some("0perator".into()), jwt: Some(secret()), ..Settings::default() };
    let server = started(settings).await;
    let client = Signer::secret(SECRET).token(None, &claims(json!({ "sub": "user-17" })));
    let operator = Signer::secret(SECRET).token(None, &claims(json!({ "scope": "read operator" })));
    for path in [LIVE, "/v1/stream"] {
        for token in [client.as_str(), &operator, "0perator"] {
            assert_eq!(refusal(&server, path, token).await, 0, "{path} {token}");
        }
        assert_eq!(refusal(&server, path, "somebody").await, 401, "{path}");
    }
    for path in [METRICS, "/v1/status", "/v1/ws/", "/v1", "/nowhere"] {
        let answer = answer(&server, path, &client).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("is for operators"), "{answer}");
        for token in [operator.as_str(), "0perator"] {
            assert_eq!(refusal(&server, path, token).await, 0, "{path} {token}");
        }
        assert_eq!(server.status(path, &[]).await, 401, "{path}");
    }
    for path in ["/livez", "/readyz", "/client.js"] {
        assert!(![401, 403].contains(&server.status(path, &[]).await), "{path}");
    }
    for path in [format!("/v1/ws?access_token={client}"), format!("/v1/stream?access_token={client}")] {
        assert!(![401, 403].contains(&server.status(&path, &[]).await), "{path}");
    }
    let protocol = format!("Sec-WebSocket-Protocol: pgoutbox, bearer.{client}");
    assert!(![401, 403].contains(&server.status(LIVE, &[&protocol]).await));
}

#[tokio::test]
async fn a_jwt_alone_opens_an_address_that_others_can_reach() {
    let settings = Settings { jwt: Some(secret()), ..Settings::default() };
    let server = running(false, "0.0.0.0:0", settings, Ok(())).await;
    let client = Signer::secret(SECRET).token(None, &claims(json!({})));
    let host = "Host: relay.internal";
    assert_eq!(server.status(LIVE, &[host]).await, 401);
    let bearer = format!("Authorization: Bearer {client}");
    assert!(![401, 403].contains(&server.status(LIVE, &[host, &bearer]).await));
}

#[tokio::test]
async fn a_token_that_is_not_valid_is_refused_with_what_is_wrong_and_never_repeated() {
    let jwt = Jwt {
        issuer: Some("https://login.example.com/".into()),
        audience: Some("pgoutbox".into()),
        ..secret()
    };
    let server = with_jwt(jwt).await;
    let ours = json!({ "iss": "https://login.example.com/", "aud": ["other", "pgoutbox"] });
    let signer = Signer::secret(SECRET);
    let good = |more: Value| {
        let mut claims = claims(ours.clone());
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims.as_object_mut().unwrap().retain(|_, claim| !claim.is_null());
        claims
    };
    for more in [json!({}), json!({ "aud": "pgoutbox" }), json!({ "nbf": now() + 30 }), json!({ "x": 1 })] {
        assert_eq!(refusal(&server, LIVE, &signer.token(None, &good(more.clone()))).await, 0, "{more}");
    }
    let headed = |header: Value| token(&header, &good(json!({})), &signer);
    let claiming = |more: Value| signer.token(None, &good(more));
    let valid = claiming(json!({}));
    let (head, rest) = valid.split_once('.').unwrap();
    let unsigned = valid.rsplit_once('.').unwrap().0;
    let swapped = claiming(json!({ "organization": "globex" }));
    let swapped = swapped.split('.').nth(1).unwrap();
    let foreign = Signer::secret("another secret of at least 32 bytes, not this one");
    for (token, why) in [
        (headed(json!({ "alg": "none" })), "unknown or none"),
        (headed(json!({ "alg": "None" })), "unknown or none"),
        (headed(json!({})), "unknown or none"),
        (format!("{unsigned}."), "signature"),
        (headed(json!({ "alg": "HS512" })), "must be HS256, RS256 or ES256"),
        (headed(json!({ "alg": "RS256" })), "need http.jwt.jwks"),
        (headed(json!({ "alg": "HS256", "crit": ["exp"], "exp": 1 })), "not a JWT"),
        (foreign.token(None, &good(json!({}))), "signature"),
        (format!("{head}.{swapped}.{}", rest.split_once('.').unwrap().1), "signature"),
        (format!("{valid}A"), "signature"),
        (format!("{valid}."), "it is not a JWT"),
        ("a.b.c".to_owned(), "it is not a JWT"),
        ("a".to_owned(), "it is not a JWT"),
        (claiming(json!({ "exp": now() - 1 })), "it has expired"),
        (claiming(json!({ "exp": now() - 61 })), "it has expired"),
        (claiming(json!({ "exp": null })), "lacks the claim exp"),
        (claiming(json!({ "exp": "never" })), "claim exp"),
        (claiming(json!({ "nbf": now() + 120 })), "has not come"),
        (claiming(json!({ "aud": "other" })), "audience (aud) is not http.jwt.audience"),
        (claiming(json!({ "aud": null })), "lacks the claim aud"),
        (claiming(json!({ "iss": "https://login.example.com" })), "issuer (iss) is not http.jwt.issuer"),
        (claiming(json!({ "iss": null })), "lacks the claim iss"),
        (claiming(json!({ "organization": null })), "lacks the claim organization"),
        (claiming(json!({ "all_organizations": true })), "both organization and all_organizations"),
        (claiming(json!({ "topics": "**" })), "topics must be a list"),
    ] {
        let answer = answer(&server, LIVE, &token).await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains(why), "{why}: {answer}");
        assert!(answer.contains("www-authenticate: Bearer error=\"invalid_token\"\r\n"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(token.len() < 9 || !answer.contains(&token[..9]), "{answer}");
    }
}

#[tokio::test]
async fn the_token_that_the_book_makes_opens_what_it_says() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/live/access.md")).unwrap();
    let (_, code) = page.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let program = format!("{code}\nprint(token('{SECRET}', 'user-17', 'acme'), end='')");
    let made = std::process::Command::new("python3").args(["-c", &program]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = with_jwt(secret()).await;
    let token = String::from_utf8(made.stdout).unwrap();
    assert_eq!(refusal(&server, LIVE, &token).await, 0);
    assert_eq!(refusal(&server, METRICS, &token).await, 403);
}

#[tokio::test]
async fn a_token_for_somebody_else_is_refused_although_no_audience_is_configured() {
    let server = with_jwt(secret()).await;
    let token = Signer::secret(SECRET).token(None, &claims(json!({ "aud": "another-service" })));
    assert_eq!(refusal(&server, LIVE, &token).await, 401);
}

#[tokio::test]
async fn a_key_verifies_only_tokens_of_its_own_algorithm() {
    let (rsa, ec) = (Signer::rsa(), Signer::ec());
    let keys = [rsa.jwk("rsa"), ec.jwk("ec")];
    let server = with_jwt(Jwt { secret: Some(SECRET.into()), ..of_file(&keys) }).await;
    let claims = claims(json!({}));
    for (signer, id) in [(&rsa, Some("rsa")), (&rsa, None), (&ec, Some("ec")), (&ec, None)] {
        assert_eq!(refusal(&server, LIVE, &signer.token(id, &claims)).await, 0, "{id:?}");
    }
    assert_eq!(refusal(&server, LIVE, &Signer::secret(SECRET).token(None, &claims)).await, 0);
    // Whoever knows only public keys can make no token of them.
    let public = |jwk: &Value, member: &str| jwk[member].as_str().unwrap().to_owned();
    for known in [public(&keys[0], "n"), public(&keys[1], "x"), jwks(&keys), keys[0].to_string()] {
        for only in [Jwt { secret: Some(SECRET.into()), ..of_file(&keys) }, of_file(&keys)] {
            let server = with_jwt(only).await;
            for id in [None, Some("rsa"), Some("ec")] {
                let forged = Signer::secret(&known).token(id, &claims);
                assert_eq!(refusal(&server, LIVE, &forged).await, 401, "{known} {id:?}");
            }
        }
    }
    let modulus = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, public(&keys[0], "n"));
    let forged = Signer::Hs256(modulus.unwrap()).token(Some("rsa"), &claims);
    for server in [&server, &with_jwt(of_file(&keys)).await] {
        assert_eq!(refusal(server, LIVE, &forged).await, 401);
    }
    for (algorithm, id, signer) in [
        ("RS256", "ec", &rsa),
        ("ES256", "rsa", &ec),
        ("RS256", "rsa", &ec),
        ("ES256", "ec", &rsa),
        ("PS256", "rsa", &rsa),
        ("RS384", "rsa", &rsa),
        ("HS256", "rsa", &rsa),
        ("RS256", "unknown", &rsa),
        ("RS256", "", &rsa),
    ] {
        let wrong = token(&json!({ "alg": algorithm, "kid": id }), &claims, signer);
        assert_eq!(refusal(&server, LIVE, &wrong).await, 401, "{algorithm} {id}");
    }
    assert_eq!(refusal(&server, LIVE, &Signer::ec().token(Some("ec"), &claims)).await, 401);
}
