//! The webhook sink with real sockets: requests, forbidden addresses, and the end of an attempt when the
//! receiver misbehaves.

use std::{net::IpAddr, process::Stdio, sync::Arc, time::Duration};

use pgoutbox::{
    Event,
    delivery::{Outcome, Reason},
    lab::receiver::{Options, Receiver},
    sink::{
        Outgoing, Registry, Report,
        egress::{Egress, Guard, Looking},
        secret::Secrets,
    },
    sinks::webhook::{Webhook, sign::Key},
    store::SubscriptionRow,
    subscription::Subscription,
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::support::{
    deliveries::Deliveries,
    hostile::{Hostile, Mode},
};
use pgoutbox::delivery::SubscriptionId;
use pgoutbox::event::Position;

const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

/// Allows 127.0.0.1 but not 127.0.0.2.
fn egress() -> Egress {
    Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() }
}

fn registry(guard: Guard) -> Registry {
    let secrets = Secrets::with_environment(None, |name| match name {
        "PGOUTBOX_SECRET_OLD" => Some(OLD.into()),
        "PGOUTBOX_SECRET_NEW" => Some(NEW.into()),
        "PGOUTBOX_SECRET_TOKEN" => Some("Bearer canary-canary".into()),
        _ => None,
    });
    let mut registry = pgoutbox::sinks::registry();
    registry.add(Webhook::with_guard(&egress(), guard, secrets).unwrap());
    registry
}

fn delivery(registry: &Registry, config: Value, payload: &str) -> Deliveries {
    let row =
        SubscriptionRow { id: SubscriptionId(1), ..SubscriptionRow::new("shop", &["**"], "webhook", config) };
    let event = Event {
        id: ID,
        position: Position(1),
        created_at: chrono::DateTime::UNIX_EPOCH,
        topic: "public.orders.create".to_owned(),
        key: None,
        payload: payload.to_owned(),
        headers: "{}".to_owned(),
        organization: None,
        source: None,
        user_id: None,
        schema_version: None,
    };
    let (subscription, problem) = Subscription::bind(row, registry);
    assert_eq!(problem, None);
    let outlet = subscription.outlet;
    let now = chrono::DateTime::from(std::time::SystemTime::now());
    Deliveries { outlet, outgoing: vec![Outgoing::new(Arc::new(event), "contract".into(), now)] }
}

/// Makes one attempt, which must end within the outlet's deadline plus half a second.
async fn attempt(deliveries: &Deliveries) -> Report {
    let outlet = &deliveries.outlet;
    let sending = outlet.send(deliveries);
    pgoutbox::sink::only(
        timeout(outlet.deadline() + Duration::from_millis(500), sending)
            .await
            .expect("the sink should end its attempt itself"),
    )
}

async fn send(config: Value, payload: &str) -> Report {
    attempt(&delivery(&registry(Guard::new(&egress())), config, payload)).await
}

fn retry(reason: Reason) -> Outcome {
    Outcome::Retry { reason, after: None }
}

#[tokio::test]
async fn an_independent_library_verifies_the_signature_of_each_active_secret() {
    let receiver = Hostile::start(Mode::Status(200, vec![], b"ok".to_vec())).await;
    let secrets = ["env:PGOUTBOX_SECRET_NEW", "env:PGOUTBOX_SECRET_OLD"];
    let config = json!({"url": receiver.url("/hook"), "secret": secrets});
    let report = send(config, r#"{"test": 2432232314}"#).await;
    assert_eq!((report.outcome, report.status), (Outcome::Delivered, Some(200)));
    let [request] = &receiver.requests()[..] else { panic!("one request") };
    for secret in [OLD, NEW] {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&request.body, &request.headers()).unwrap();
    }
    let id = ID.to_string();
    assert!(request.head.starts_with("POST /hook HTTP/1.1\r\n"));
    for (name, value) in
        [("webhook-id", id.as_str()), ("idempotency-key", &id), ("content-type", "application/json")]
    {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.header("accept-encoding"), Some("identity"), "answers are not decoded");
}

#[tokio::test]
async fn without_a_secret_the_request_is_unsigned_and_still_has_id_and_timestamp() {
    let receiver = Hostile::start(Mode::Status(204, vec![], vec![])).await;
    let headers = json!({"authorization": "env:PGOUTBOX_SECRET_TOKEN"});
    let config = json!({"url": receiver.url("/"), "method": "PUT", "headers": headers});
    assert_eq!(send(config, "{}").await.outcome, Outcome::Delivered);
    let request = &receiver.requests()[0];
    assert_eq!(
        (request.header("webhook-signature"), request.header("authorization")),
        (None, Some("Bearer canary-canary"))
    );
    assert!(
        request.head.starts_with("PUT / ")
            && request.header("webhook-id").is_some()
            && request.header("webhook-timestamp").is_some()
    );
}

#[tokio::test]
async fn a_payload_arrives_byte_by_byte_as_postgresql_wrote_it() {
    let receiver = Hostile::start(Mode::Status(200, vec![], vec![])).await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let odd = [r#"{"n": 1e400, "i": 123456789012345678901234567890, "u": "\u0001é💥"}"#, "null", &deep];
    for payload in odd {
        assert_eq!(
            send(json!({"url": receiver.url("/"), "body": "raw"}), payload).await.outcome,
            Outcome::Delivered
        );
        assert_eq!(receiver.requests().last().unwrap().body, payload.as_bytes());
        assert_eq!(send(json!({"url": receiver.url("/")}), payload).await.outcome, Outcome::Delivered);
        let expected = format!(
            r#"{{"type":"public.orders.create","timestamp":"1970-01-01T00:00:00.000000Z","data":{payload}}}"#
        );
        assert_eq!(receiver.requests().last().unwrap().body, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_body_above_a_mebibyte_is_rejected_without_a_connection() {
    let receiver = Hostile::start(Mode::Hang).await;
    let report = send(json!({"url": receiver.url("/")}), &format!("\"{}\"", "a".repeat(1024 * 1024))).await;
    assert_eq!(report.outcome, Outcome::Rejected { reason: Reason::BodyTooLarge });
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_redirect_is_reported_and_never_followed() {
    let trap = Hostile::trap().await;
    for status in [301, 302, 303, 307, 308] {
        for place in
            ["http://169.254.169.254/latest/meta-data/".to_owned(), trap.url("/"), "/elsewhere".to_owned()]
        {
            let receiver = Hostile::start(Mode::Redirect(status, place)).await;
            let report = send(json!({"url": receiver.url("/")}), "{}").await;
            assert_eq!(
                (report.outcome, report.status, report.ambiguous),
                (retry(Reason::Redirect), Some(status), false)
            );
            assert_eq!(receiver.requests().len(), 1);
        }
    }
    assert_eq!(trap.connections(), 0);
}

#[tokio::test]
async fn a_name_with_a_forbidden_answer_is_never_connected_to() {
    let trap = Hostile::trap().await;
    let receiver = Hostile::start(Mode::Status(200, vec![], vec![])).await;
    for answers in [
        &["127.0.0.2"] as &[_],
        &["127.0.0.1", "127.0.0.2"],
        &["::ffff:127.0.0.2"],
        &["10.0.0.1"],
        &["169.254.169.254"],
        &["::1"],
    ] {
        let registry =
            registry(resolving(move |_| answers.iter().map(|text| text.parse().unwrap()).collect()));
        for port in [trap.address.port(), receiver.address.port()] {
            let report =
                attempt(&delivery(&registry, json!({"url": format!("http://shop.test:{port}/")}), "{}"))
                    .await;
            assert_eq!(
                (report.outcome, report.ambiguous),
                (retry(Reason::ForbiddenAddress), false),
                "{answers:?}"
            );
            assert!(
                !report.answer.unwrap().contains("127.0.0"),
                "an answer must not reveal the operator's network"
            );
        }
    }
    assert_eq!((trap.connections(), receiver.connections()), (0, 0));
}

#[tokio::test]
async fn a_name_that_changes_its_address_cannot_reach_a_forbidden_one() {
    let receiver = Hostile::start(Mode::CloseMidAnswer(500)).await;
    let trap = Hostile::start_on(&format!("127.0.0.2:{}", receiver.address.port()), Mode::Hang).await;
    // The allowed address at the first lookup, the forbidden one at every later lookup.
    let registry = registry(resolving(|lookup| {
        vec![if lookup == 0 { [127, 0, 0, 1].into() } else { [127, 0, 0, 2].into() }]
    }));
    let delivery =
        delivery(&registry, json!({"url": format!("http://shop.test:{}/", receiver.address.port())}), "{}");
    assert_eq!(attempt(&delivery).await.outcome, retry(Reason::ServerError));
    assert_eq!(attempt(&delivery).await.outcome, retry(Reason::ForbiddenAddress));
    assert_eq!((receiver.connections(), trap.connections()), (1, 0));
}

/// A guard with a resolver that answers by the number of the lookup.
fn resolving(answer: impl Fn(usize) -> Vec<IpAddr> + Send + Sync + 'static) -> Guard {
    let lookups = std::sync::atomic::AtomicUsize::new(0);
    let lookup = move |_: &str| -> Looking {
        let answers = answer(lookups.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        Box::pin(async move { Ok(answers) })
    };
    Guard::with_lookup(&egress(), Arc::new(lookup))
}

#[tokio::test]
async fn a_failed_lookup_a_closed_port_and_a_server_without_tls_have_different_reasons() {
    let failing = |_: &str| -> Looking { Box::pin(async { Err(std::io::Error::other("servfail")) }) };
    let unresolved = registry(Guard::with_lookup(&egress(), Arc::new(failing)));
    let report = attempt(&delivery(&unresolved, json!({"url": "http://shop.test/"}), "{}")).await;
    assert_eq!((report.outcome, report.ambiguous), (retry(Reason::DnsFailed), false));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let report = send(json!({"url": format!("http://{closed}/canary")}), "{}").await;
    assert_eq!((report.outcome, report.ambiguous), (retry(Reason::ConnectFailed), false));
    assert!(!report.answer.unwrap().contains("canary"));

    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", plain.local_addr().unwrap());
    let answering = async {
        let (mut stream, _) = plain.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let (report, _stream) = tokio::join!(send(json!({"url": url}), "{}"), answering);
    assert_eq!((report.outcome, report.ambiguous), (retry(Reason::TlsFailed), false));
}

#[tokio::test]
async fn whatever_a_receiver_does_an_attempt_ends_in_time_with_a_reason_and_a_short_answer() {
    for (mode, outcome, ambiguous) in [
        (Mode::Hang, retry(Reason::Timeout), true),
        (Mode::DripHead, retry(Reason::Timeout), true),
        (Mode::Endless103, retry(Reason::BrokenAnswer), true),
        (Mode::HugeHead, retry(Reason::BrokenAnswer), true),
        (Mode::Garbage, retry(Reason::BrokenAnswer), true),
        (Mode::CloseUnanswered, retry(Reason::BrokenAnswer), true),
        (Mode::DripBody(200), Outcome::Delivered, false),
        (Mode::DripBody(500), retry(Reason::ServerError), true),
        (Mode::EndlessBody(200), Outcome::Delivered, false),
        (Mode::EndlessBody(404), retry(Reason::ClientError), false),
        (Mode::Gzip(400), retry(Reason::ClientError), false),
        (Mode::CloseMidAnswer(200), Outcome::Delivered, false),
        (Mode::CloseMidAnswer(502), retry(Reason::ServerError), true),
        (
            Mode::Status(400, vec![], b"\0\x1b]0;x\x07\xff\xfe".repeat(2000)),
            retry(Reason::ClientError),
            false,
        ),
        (Mode::Status(410, vec![], vec![]), Outcome::Gone, false),
    ] {
        let mut receiver = Hostile::start(mode.clone()).await;
        let begun = Instant::now();
        let registry = registry(Guard::new(&egress()));
        let report =
            attempt(&delivery(&registry, json!({"url": receiver.url("/"), "timeout": "2s"}), "{}")).await;
        assert!(begun.elapsed() < Duration::from_millis(2500), "{mode:?} took {:?}", begun.elapsed());
        assert_eq!(
            (&report.outcome, report.ambiguous),
            (&outcome, ambiguous),
            "{mode:?}: {:?}",
            report.answer
        );
        if let Some(answer) = report.answer {
            assert!(answer.len() <= 1024 && !answer.chars().any(char::is_control), "{mode:?}: {answer:?}");
        }
        drop(registry);
        receiver.closed(1).await;
    }
}

#[tokio::test]
async fn retry_after_is_honoured_on_any_failure_that_is_retried() {
    for (status, values, outcome) in [
        (
            429,
            &["5"] as &[&str],
            Outcome::Retry { reason: Reason::RateLimited, after: Some(Duration::from_secs(5)) },
        ),
        (
            500,
            &["nonsense", "7"],
            Outcome::Retry { reason: Reason::ServerError, after: Some(Duration::from_secs(7)) },
        ),
        (
            503,
            &["Fri, 31 Dec 9999 23:59:59 GMT"],
            Outcome::Retry { reason: Reason::RateLimited, after: Some(Duration::from_secs(3600)) },
        ),
        (503, &["-1"], retry(Reason::RateLimited)),
        (503, &["1e300", "NaN", "Thu, 01 Jan 1970 00:00:00 GMT"], retry(Reason::RateLimited)),
        (400, &["5"], Outcome::Rejected { reason: Reason::ClientError }),
        (200, &["5"], Outcome::Delivered),
    ] {
        let headers = values.iter().map(|value| ("retry-after", (*value).to_owned())).collect();
        let receiver = Hostile::start(Mode::Status(status, headers, vec![])).await;
        let report = send(json!({"url": receiver.url("/"), "dead_letter_on": [400]}), "{}").await;
        assert_eq!(report.outcome, outcome, "{status} {values:?}");
    }
}

#[tokio::test]
async fn secrets_in_an_answer_are_redacted() {
    let problem = br#"{"title":"Forbidden","detail":"token canary-canary is revoked","more":"x"}"#.to_vec();
    let headers = vec![("content-type", "application/problem+json; charset=utf-8".to_owned())];
    let receiver = Hostile::start(Mode::Status(403, headers, problem)).await;
    let report = send(
        json!({"url": receiver.url("/"), "headers": {"authorization": "env:PGOUTBOX_SECRET_TOKEN"}}),
        "{}",
    )
    .await;
    assert_eq!(report.answer.as_deref(), Some("Forbidden: token [redacted] is revoked"));
    // In base64, in hexadecimal, in another case, in part, and cut where reading ends.
    let long = [b"x".repeat(16 * 1024 - 20), b"y canary-canary".to_vec()].concat();
    let echo = b"Y2FuYXJ5LWNhbmFyeQ== 63616e6172792d63616e617279 CANARY-CANARY canary-can... %63anary-canary"
        .to_vec();
    for answer in [echo, long] {
        let receiver = Hostile::start(Mode::Status(403, vec![], answer)).await;
        let config =
            json!({"url": receiver.url("/"), "headers": {"authorization": "env:PGOUTBOX_SECRET_TOKEN"}});
        let kept = send(config, "{}").await.answer.unwrap();
        for part in ["canary", "CANARY", "Y2Fu", "63616e"] {
            assert!(!kept.contains(part), "{part}: {kept}");
        }
    }
}

#[tokio::test]
async fn one_connection_serves_many_attempts() {
    let receiver = Hostile::start(Mode::Status(200, vec![], b"ok".to_vec())).await;
    let delivery = delivery(&registry(Guard::new(&egress())), json!({"url": receiver.url("/")}), "{}");
    for _ in 0..20 {
        assert_eq!(attempt(&delivery).await.outcome, Outcome::Delivered);
    }
    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 20));
}

#[tokio::test]
async fn proxies_of_the_environment_are_ignored() {
    // Variables are read when a client is made, and setting them in this process is unsafe, so a child
    // process runs a test.
    let trap = Hostile::trap().await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "webhook::one_connection_serves_many_attempts"])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(name, trap.url("/"));
    }
    let ended =
        timeout(Duration::from_secs(30), child.env_remove("NO_PROXY").env_remove("no_proxy").output())
            .await
            .unwrap()
            .unwrap();
    let printed = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && printed.contains("1 passed"), "{printed}");
    assert_eq!(trap.connections(), 0);
}

#[tokio::test]
async fn the_local_receiver_verifies_signatures_fails_and_can_be_down() {
    let (received, mut requests) = mpsc::channel(8);
    let options = Options {
        secrets: vec![Key::parse(&OLD.into()).unwrap()],
        received: Some(received),
        ..Options::default()
    };
    let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let (url, switch, stop, tracker) = (
        format!("http://{}/", receiver.address()),
        receiver.switch(),
        CancellationToken::new(),
        TaskTracker::new(),
    );
    let running = tracker.spawn(receiver.run(stop.clone()));
    let registry = registry(Guard::new(&egress()));
    let mut answered = async |secret: &str| {
        let report = attempt(&delivery(&registry, json!({"url": url, "secret": secret}), "[[1e400]]")).await;
        (report.status, timeout(Duration::from_secs(5), requests.recv()).await.unwrap().unwrap())
    };
    let (status, request) = answered("env:PGOUTBOX_SECRET_OLD").await;
    assert_eq!((status, request.answered, request.verified), (Some(204), 204, Some(true)));
    assert_eq!((request.id, request.topic.as_deref()), (Some(ID.to_string()), Some("public.orders.create")));
    assert!(request.body.ends_with(r#""data":[[1e400]]}"#));
    let (status, request) = answered("env:PGOUTBOX_SECRET_NEW").await;
    assert_eq!((status, request.verified), (Some(401), Some(false)));
    switch.set_down(true);
    assert_eq!(answered("env:PGOUTBOX_SECRET_OLD").await.0, Some(503));
    switch.set_down(false);
    assert_eq!(answered("env:PGOUTBOX_SECRET_OLD").await.0, Some(204));
    assert_eq!(switch.requests(), 4);
    stop.cancel();
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
}
