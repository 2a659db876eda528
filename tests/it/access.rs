//! Who may ask for what over HTTP: tokens and their claims, keys and where they come from, origins of pages.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use pgoutbox::http::{Jwks, Jwt, Keys, Pace, Remote, Settings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    http::{Running, running},
    support::{
        ChildRelay, Database,
        tokens::{Signer, claims, jwks, now, token},
    },
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

/// The whole answer to a request with a token.
async fn answer(server: &Running, path: &str, token: &str) -> String {
    server.get(path, &[&format!("Authorization: Bearer {token}")]).await
}

/// The status that says whether a token lets its bearer in; 0: it does.
async fn refusal(server: &Running, path: &str, token: &str) -> u16 {
    let answer = answer(server, path, token).await;
    let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
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
        (format!("{valid}A"), "not a JWT"),
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
    assert_eq!(refusal(&server, LIVE, &forged).await, 401);
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

/// A server of keys.
struct Login {
    address: SocketAddr,
    answer: watch::Sender<Answer>,
    asked: watch::Receiver<u32>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
enum Answer {
    Body(String),
    Status(&'static str),
    Hang,
}

impl Login {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, answers) = watch::channel(answer);
        let (ask, asked) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answers, ask) = (answers.clone(), ask.clone());
                open.spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        ask.send_modify(|asked| *asked += 1);
                        let answer = answers.borrow().clone();
                        let (status, body) = match answer {
                            Answer::Body(body) => ("200 OK", body),
                            Answer::Status(status) => (status, String::new()),
                            Answer::Hang => std::future::pending().await,
                        };
                        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
                    }
                });
            }
        });
        Self { address, answer, asked, _tasks: tasks }
    }

    /// How it is followed: `least` passes until it is asked again.
    fn jwt(&self, every: Duration, least: Duration) -> Jwt {
        let url = format!("http://{}/keys?tenant=1", self.address).parse().unwrap();
        let pace = Pace { every, least, within: Duration::from_secs(2) };
        let remote = Remote::new(url, pgoutbox::Egress::default(), pace);
        Jwt { jwks: Some(Jwks::Url(Arc::new(remote))), ..Jwt::default() }
    }

    async fn asked(&mut self, times: u32) {
        let asked = timeout(DEADLINE, self.asked.wait_for(|asked| *asked >= times)).await;
        assert!(asked.is_ok(), "it was not asked {times} times");
    }
}

const SHORT: Duration = Duration::from_millis(50);
const NEVER: Duration = Duration::from_secs(3_600);

/// Asks until a token is let in or refused as expected.
async fn becomes(server: &Running, token: &str, expected: u16) {
    let waiting = async { while refusal(server, LIVE, token).await != expected {} };
    assert!(timeout(DEADLINE, waiting).await.is_ok(), "the answer does not become {expected}");
}

#[tokio::test]
async fn keys_that_are_rotated_are_fetched_when_a_token_names_them() {
    let (old, new, claims) = (Signer::rsa(), Signer::ec(), claims(json!({})));
    let login = Login::start(Answer::Body(jwks(&[old.jwk("old")]))).await;
    let server = with_jwt(login.jwt(NEVER, SHORT)).await;
    assert_eq!(
        refusal(&server, LIVE, &old.token(Some("old"), &claims)).await,
        0,
        "the first fetch is awaited"
    );
    assert_eq!(refusal(&server, LIVE, &new.token(Some("new"), &claims)).await, 401);
    login.answer.send_replace(Answer::Body(jwks(&[new.jwk("new")])));
    becomes(&server, &new.token(Some("new"), &claims), 0).await;
    assert_eq!(refusal(&server, LIVE, &old.token(Some("old"), &claims)).await, 401, "it was withdrawn");
}

#[tokio::test]
async fn keys_are_fetched_again_and_again_although_nobody_asks() {
    let (old, new, claims) = (Signer::ec(), Signer::ec(), claims(json!({})));
    let mut login = Login::start(Answer::Body(jwks(&[old.jwk("old")]))).await;
    // A withdrawn key is refused without anybody naming an unknown one.
    let server = with_jwt(login.jwt(SHORT, NEVER)).await;
    assert_eq!(refusal(&server, LIVE, &old.token(Some("old"), &claims)).await, 0);
    login.answer.send_replace(Answer::Body(jwks(&[new.jwk("new")])));
    becomes(&server, &old.token(Some("old"), &claims), 401).await;
    login.asked(4).await;
}

#[tokio::test]
async fn tokens_that_name_unknown_keys_do_not_make_keys_be_fetched_all_the_time() {
    let (signer, claims) = (Signer::ec(), claims(json!({})));
    let login = Login::start(Answer::Body(jwks(&[signer.jwk("one")]))).await;
    let server = with_jwt(login.jwt(NEVER, NEVER)).await;
    for number in 0..20 {
        let token = signer.token(Some(&format!("unknown-{number}")), &claims);
        assert_eq!(refusal(&server, LIVE, &token).await, 401);
    }
    assert_eq!(*login.asked.borrow(), 1);
    assert_eq!(refusal(&server, LIVE, &signer.token(Some("one"), &claims)).await, 0);
}

#[tokio::test]
async fn keys_are_kept_while_fetching_fails_in_whatever_way() {
    let (signer, claims) = (Signer::ec(), claims(json!({})));
    let set = jwks(&[signer.jwk("one")]);
    for failure in [
        Answer::Status("500 Internal Server Error"),
        Answer::Status("302 Found\r\nlocation: /elsewhere"),
        Answer::Hang,
        Answer::Body("<html>maintenance</html>".to_owned()),
        Answer::Body(jwks(&[])),
        Answer::Body(format!("{set}{}", " ".repeat(10_000_000))),
    ] {
        let mut login = Login::start(Answer::Body(set.clone())).await;
        let server = with_jwt(login.jwt(SHORT, SHORT)).await;
        assert_eq!(refusal(&server, LIVE, &signer.token(Some("one"), &claims)).await, 0);
        login.answer.send_replace(failure);
        let asked = *login.asked.borrow();
        login.asked(asked + 2).await;
        // An unknown key shows that the failure is known; the known one still verifies.
        becomes(&server, &signer.token(Some("two"), &claims), 503).await;
        assert_eq!(refusal(&server, LIVE, &signer.token(Some("one"), &claims)).await, 0);
        login.answer.send_replace(Answer::Body(jwks(&[signer.jwk("two")])));
        becomes(&server, &signer.token(Some("two"), &claims), 0).await;
    }
}

#[tokio::test]
async fn without_keys_a_token_is_not_called_invalid_and_other_tokens_are_not_held_up() {
    let (signer, claims) = (Signer::ec(), claims(json!({})));
    for failure in [Answer::Hang, Answer::Status("404 Not Found")] {
        let login = Login::start(failure).await;
        let jwt = Jwt { secret: Some(SECRET.into()), ..login.jwt(NEVER, NEVER) };
        let server =
            started(Settings { token: Some("t".into()), jwt: Some(jwt), ..Settings::default() }).await;
        let (named, other) =
            (signer.token(Some("one"), &claims), Signer::secret(SECRET).token(None, &claims));
        let (waits, by_secret, by_token) = tokio::join!(
            answer(&server, LIVE, &named),
            timeout(Duration::from_secs(1), refusal(&server, LIVE, &other)),
            timeout(Duration::from_secs(1), refusal(&server, METRICS, "t")),
        );
        assert!(waits.starts_with("HTTP/1.1 503 ") && waits.contains("retry-after: 10\r\n"), "{waits}");
        assert_eq!((by_secret, by_token), (Ok(0), Ok(0)));
        assert_eq!(server.status("/livez", &[]).await, 200);
    }
}

#[tokio::test]
async fn settings_that_follow_others_keep_the_keys_of_the_same_url() {
    let (signer, claims) = (Signer::ec(), claims(json!({})));
    let login = Login::start(Answer::Body(jwks(&[signer.jwk("one")]))).await;
    let settings = |jwt: Jwt| Settings { jwt: Some(jwt), ..Settings::default() };
    let before = settings(login.jwt(NEVER, NEVER));
    let server = started(before.clone()).await;
    let token = signer.token(Some("one"), &claims);
    assert_eq!(refusal(&server, LIVE, &token).await, 0);
    login.answer.send_replace(Answer::Status("500 Internal Server Error"));
    let mut same = settings(login.jwt(NEVER, NEVER));
    same.keep_keys_of(&before);
    assert_eq!(refusal(&started(same).await, LIVE, &token).await, 0);
    let elsewhere = Login::start(Answer::Status("500 Internal Server Error")).await;
    let mut other = settings(elsewhere.jwt(NEVER, NEVER));
    other.keep_keys_of(&before);
    assert_eq!(refusal(&started(other).await, LIVE, &token).await, 503);
}

const APP: &str = "Origin: https://app.example.com";

#[tokio::test]
async fn pages_of_allowed_origins_may_use_the_api_and_read_what_it_answers() {
    let origins = vec!["https://app.example.com".to_owned()];
    let settings = Settings { origins, token: Some("t".into()), ..Settings::default() };
    let server = started(settings).await;
    let bearer = "Authorization: Bearer t";
    let readable = "access-control-allow-origin: https://app.example.com\r\n";
    for (path, headers, status) in [
        ("/v1/nowhere", vec![APP, bearer], "404"),
        ("/v1/nowhere", vec![APP], "401"),
        ("/v1/ws", vec![APP], "401"),
    ] {
        let answer = server.get(path, &headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {answer}");
        assert!(answer.contains(readable) && answer.contains("vary: origin\r\n"), "{path} {answer}");
        assert!(!answer.contains("access-control-allow-credentials"), "{answer}");
    }
    assert!(server.get("/client.js", &[APP]).await.contains(readable));
    let own = format!("Origin: http://{}", server.address);
    let answer = server.get("/v1/nowhere", &[&own, bearer]).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("vary: origin\r\n"), "{answer}");
    assert!(!answer.contains("access-control"), "{answer}");
    for origin in ["https://app.example.com.evil.example", "http://app.example.com", "null", "*"] {
        let answer = server.get("/v1/ws", &[&format!("Origin: {origin}"), bearer]).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control"), "{answer}");
    }
    // What is not the API is for pages of no other origin.
    for path in [METRICS, "/livez", "/", "/v1"] {
        assert_eq!(server.status(path, &[APP, bearer]).await, 403, "{path}");
    }
    assert_eq!(server.status("/v1/nowhere", &[APP, &own, bearer]).await, 403);
}

#[tokio::test]
async fn a_browser_that_asks_first_is_told_what_a_page_may_send() {
    let origins = vec!["https://app.example.com".to_owned()];
    let server = started(Settings { origins, token: Some("t".into()), ..Settings::default() }).await;
    let preflight = async |path: &str, origin: &str| {
        let host = server.address;
        let ask = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n";
        server
            .raw(&format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n{ask}Connection: close\r\n\r\n"
            ))
            .await
    };
    let answer = preflight("/v1/stream", APP).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    for line in [
        "access-control-allow-origin: https://app.example.com\r\n",
        "access-control-allow-methods: GET, POST, PUT, PATCH, DELETE\r\n",
        "access-control-allow-headers: Authorization, Content-Type, Last-Event-ID\r\n",
        "vary: origin\r\n",
    ] {
        assert!(answer.contains(line), "{line} {answer}");
    }
    for (path, origin) in [("/v1/stream", "Origin: https://evil.example"), (METRICS, APP)] {
        let answer = preflight(path, origin).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control"), "{answer}");
    }
    let own = format!("Origin: http://{}", server.address);
    assert!(preflight("/v1/stream", &own).await.starts_with("HTTP/1.1 401 "), "no page of another origin");
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_file_of_keys_is_followed_and_no_token_is_logged() {
    let (old, new, claims) = (Signer::ec(), Signer::ec(), claims(json!({})));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    fs::write(&file, jwks(&[old.jwk("old")])).unwrap();
    let (database, listen) = (Database::new().await, free_port().to_string());
    let settings = [
        ("PGOUTBOX__HTTP__LISTEN", listen.as_str()),
        ("PGOUTBOX__HTTP__JWT__JWKS", &format!("file:{}", file.display())),
        ("PGOUTBOX__TELEMETRY__LOG", "trace"),
    ];
    let relay = ChildRelay::start(&database, "follows", &settings).await;
    let server = Running::at(listen.parse().unwrap());
    let (of_old, of_new) = (old.token(Some("old"), &claims), new.token(Some("new"), &claims));
    assert_eq!(refusal(&server, LIVE, &of_old).await, 0);
    assert_eq!(refusal(&server, LIVE, &of_new).await, 401);

    fs::write(&file, "nonsense").unwrap();
    relay.wait_for_log("cannot be used; the relay goes on without").await;
    assert_eq!(refusal(&server, LIVE, &of_old).await, 0);

    fs::write(&file, jwks(&[new.jwk("new")])).unwrap();
    becomes(&server, &of_new, 0).await;
    assert_eq!(refusal(&server, LIVE, &of_old).await, 401);

    let query = format!("{LIVE}?access_token={of_new}&filter=é%");
    server.get(&query, &[&format!("Sec-WebSocket-Protocol: pgoutbox, bearer.{of_new}")]).await;
    for token in [&of_old, &of_new] {
        let part = token.rsplit('.').next().unwrap();
        assert!(relay.log().iter().all(|line| !line.contains(part)), "{:#?}", relay.log());
    }
}

#[tokio::test]
async fn check_says_when_keys_cannot_be_fetched() {
    let (database, signer) = (Database::new().await, Signer::ec());
    let login = Login::start(Answer::Body(jwks(&[signer.jwk("one")]))).await;
    let jwks = format!("http://{}/keys", login.address);
    let check = async || {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .arg("check")
            .env_clear()
            .env("DATABASE_URL", database.relay_url())
            .env("PGOUTBOX__HTTP__JWT__JWKS", &jwks)
            .current_dir(std::env::temp_dir())
            .output();
        let output = output.await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check().await, (Some(0), String::new()));
    login.answer.send_replace(Answer::Status("404 Not Found"));
    assert_eq!(check().await, (Some(1), "http.jwt.jwks: answered 404\n".to_owned()));
}
