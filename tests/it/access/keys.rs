//! Keys of tokens at a URL, which rotates, fails and hangs, and in a file.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use pgoutbox::http::{Jwks, Jwt, Pace, Remote, Settings};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{DEADLINE, LIVE, METRICS, SECRET, answer, refusal, started, with_jwt};
use crate::{
    http::Running,
    support::{
        ChildRelay, Database,
        tokens::{Signer, claims, jwks},
    },
};

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
        self.paced(Pace { every, least, within: Duration::from_secs(2) })
    }

    fn paced(&self, pace: Pace) -> Jwt {
        let url = format!("http://{}/keys?tenant=1", self.address).parse().unwrap();
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
async fn requests_that_wait_for_keys_keep_no_probe_and_no_operator_waiting() {
    let (signer, claims) = (Signer::ec(), claims(json!({})));
    let mut login = Login::start(Answer::Hang).await;
    let jwt = Some(login.paced(Pace { every: NEVER, least: NEVER, within: DEADLINE }));
    let server = Arc::new(started(Settings { token: Some("t".into()), jwt, ..Settings::default() }).await);
    let mut strangers = JoinSet::new();
    for number in 0..400 {
        let (server, token) = (server.clone(), signer.token(Some(&format!("{number}")), &claims));
        strangers.spawn(async move { refusal(&server, LIVE, &token).await });
    }
    login.asked(1).await;
    let second = Duration::from_secs(1);
    for _ in 0..350 {
        let refused = timeout(second, strangers.join_next()).await.expect("few of them wait");
        assert_ne!(refused.unwrap().unwrap(), 0);
    }
    assert_eq!(timeout(second, server.status("/livez", &[])).await, Ok(200));
    assert_eq!(timeout(second, refusal(&server, METRICS, "t")).await, Ok(0));
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
