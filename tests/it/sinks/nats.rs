//! The nats sink with a server for each test.

use std::{collections::HashMap, path::Path};

use async_nats::jetstream::{self, message::StreamMessage, stream};
use pgoutbox::{
    Event,
    delivery::{Outcome, Reason},
    sink::{Registry, Report},
};
use serde_json::{Value, json};

use crate::{
    sink_contract::Destination,
    support::{
        Database, RelayBox, clients,
        deliveries::{connections, deliveries, deliveries_of, registry},
        relay::settings,
        server::{Kind, PrivateServer, certificates, eventually},
    },
};

pub(super) const NATS: Kind = Kind {
    program: "nats-server",
    package: "nats-server",
    arguments: |folder, port| {
        let (port, folder) = (port.to_string(), folder.join("jetstream").into_os_string());
        ["-js", "-a", "127.0.0.1", "-p", &port, "-sd"].iter().map(Into::into).chain([folder]).collect()
    },
};

/// A server with the stream EVENTS for `events.>`, and the section with its address.
pub(crate) struct Nats {
    pub(crate) server: PrivateServer,
    pub(crate) more: String,
    /// Login with which the test reads.
    login: Option<(&'static str, &'static str)>,
}

impl Nats {
    /// A server with a configuration file.
    pub(crate) fn with(file: &str, login: Option<(&'static str, &'static str)>) -> Self {
        let server = PrivateServer::start_in(NATS, |folder| {
            let path = folder.join("nats.conf");
            std::fs::write(&path, file).unwrap();
            vec!["-c".into(), path.into()]
        });
        Self { server: server.unwrap(), more: String::new(), login }
    }

    pub(crate) fn section(&self) -> String {
        format!("[sinks.nats]\nservers = ['nats://127.0.0.1:{}']\n{}", self.server.port(), self.more)
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        let mut options = async_nats::ConnectOptions::new();
        if let Some((user, password)) = self.login {
            options = options.user_and_password(user.to_owned(), password.to_owned());
        }
        jetstream::new(options.connect(format!("127.0.0.1:{}", self.server.port())).await.unwrap())
    }

    pub(crate) async fn stream(&self, config: stream::Config) {
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    pub(crate) async fn messages(&self, stream: &str) -> Vec<StreamMessage> {
        let stream = self.jetstream().await.get_stream(stream).await.unwrap();
        let state = &stream.cached_info().state;
        let mut messages = Vec::new();
        for number in state.first_sequence.max(1)..=state.last_sequence {
            messages.push(stream.get_raw_message(number).await.unwrap());
        }
        messages
    }
}

pub(super) fn events() -> stream::Config {
    stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        ..stream::Config::default()
    }
}

pub(crate) fn reason(report: &Report) -> (Option<Reason>, bool) {
    (report.outcome.reason(), report.ambiguous)
}

/// Sends one delivery and returns its report.
pub(super) async fn send_one(registry: &Registry, config: Value) -> Report {
    let deliveries = deliveries(registry, "nats", config, 1);
    deliveries.outlet.send(&deliveries).await.remove(0)
}

impl Destination for Nats {
    const KIND: &'static str = "nats";

    async fn start() -> Self {
        let nats =
            Self { server: PrivateServer::start(NATS, &[]).unwrap(), more: String::new(), login: None };
        nats.stream(events()).await;
        nats
    }

    fn section(&self) -> String {
        Self::section(self)
    }

    fn nowhere() -> Option<Registry> {
        Some(registry("[sinks.nats]\nservers = ['nats://127.0.0.1:1']\ntoken = 'secret-of-the-connection'"))
    }

    fn config(&self) -> Value {
        json!({ "subject": "events.all" })
    }

    async fn received(&self) -> Vec<(String, String)> {
        let messages = self.messages("EVENTS").await.into_iter();
        let text = |message: &StreamMessage| String::from_utf8(message.payload.to_vec()).unwrap();
        messages
            .map(|message| (message.headers.get("Nats-Msg-Id").unwrap().to_string(), text(&message)))
            .collect()
    }

    async fn markers(&self) -> Vec<Option<String>> {
        let messages = self.messages("EVENTS").await;
        let header =
            |message: &StreamMessage| message.headers.get("pgoutbox-replay").map(ToString::to_string);
        messages.iter().map(header).collect()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({}), "subject"),
            (json!({ "subject": "events.{tenant}" }), "tenant"),
            (json!({ "subject": "events.>" }), "config.subject"),
            (json!({ "subject": "events..a" }), "config.subject"),
            (json!({ "subject": "events. a" }), "config.subject"),
            (json!({ "subject": "$JS.API.STREAM.DELETE.EVENTS" }), "are reserved"),
            (json!({ "subject": "events.a", "stream": "A B" }), "config.stream"),
        ]
    }
}

#[tokio::test]
async fn a_message_has_its_id_the_attributes_of_the_event_and_the_headers_of_the_publisher() {
    let nats = Nats::start().await;
    let config = json!({ "subject": "events.{topic}.{organization}.{key}", "stream": "EVENTS" });
    let mut deliveries = deliveries(&nats.registry(), "nats", config, 1);
    (deliveries[0].attempt, deliveries[0].repeated) = (2, true);
    assert_eq!(deliveries.outlet.send(&deliveries).await[0].outcome, Outcome::Delivered);
    let message = nats.messages("EVENTS").await.remove(0);
    assert_eq!(message.subject.as_str(), "events.public.orders.create.acme.order-1");
    let headers: HashMap<String, String> = message
        .headers
        .iter()
        .map(|(name, values)| (name.to_string().to_lowercase(), values[0].to_string()))
        .collect();
    let id = deliveries[0].event.id.to_string();
    for (name, value) in [
        ("nats-msg-id", id.as_str()),
        ("nats-expected-stream", "EVENTS"),
        ("pgoutbox-id", id.as_str()),
        ("pgoutbox-topic", "public.orders.create"),
        ("pgoutbox-key", "order-1"),
        ("pgoutbox-organization", "acme"),
        ("pgoutbox-source", "shop"),
        ("pgoutbox-schema-version", "1"),
        ("pgoutbox-attempt", "2"),
        ("pgoutbox-possible-duplicate", "true"),
        ("content-type", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ] {
        assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name} of {headers:?}");
    }
}

#[tokio::test]
async fn a_cloud_event_is_binary_or_structured() {
    let nats = Nats::start().await;
    for body in ["cloudevents-binary", "cloudevents"] {
        let report = send_one(&nats.registry(), json!({ "subject": "events.a", "body": body })).await;
        assert_eq!(report.outcome, Outcome::Delivered);
    }
    let messages = nats.messages("EVENTS").await;
    let header = |number: usize, name: &str| messages[number].headers.get(name).map(ToString::to_string);
    assert_eq!(header(0, "ce-type").as_deref(), Some("public.orders.create"));
    assert_eq!(header(0, "ce-datacontenttype").as_deref(), Some("application/json"));
    assert_eq!(header(0, "content-type"), None);
    assert_eq!(header(1, "content-type").as_deref(), Some("application/cloudevents+json; charset=utf-8"));
    let event: Value = serde_json::from_slice(&messages[1].payload).unwrap();
    assert_eq!(event["id"].as_str(), header(1, "Nats-Msg-Id").as_deref());
}

#[tokio::test]
async fn a_duplicate_counts_as_delivered_and_is_stored_once() {
    let nats = Nats::start().await;
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 3);
    let outlet = &deliveries.outlet;
    for _ in 0..2 {
        assert!(outlet.send(&deliveries).await.iter().all(|report| report.outcome == Outcome::Delivered));
    }
    assert_eq!(nats.received().await.len(), 3);
}

#[tokio::test]
async fn with_a_message_id_of_their_own_two_subscriptions_into_one_stream_are_two_messages() {
    let nats = Nats::start().await;
    let event = deliveries(&nats.registry(), "nats", json!({ "subject": "events.a" }), 1);
    let mut other =
        deliveries(&nats.registry(), "nats", json!({ "subject": "events.b", "message_id": "{id}/b" }), 1);
    other[0].event = event[0].event.clone();
    for deliveries in [&event, &other] {
        assert_eq!(deliveries.outlet.send(deliveries).await[0].outcome, Outcome::Delivered);
    }
    assert_eq!(nats.messages("EVENTS").await.len(), 2);
}

#[tokio::test]
async fn a_subject_without_a_stream_is_a_retry_that_names_the_subject() {
    let nats = Nats::start().await;
    let deliveries = deliveries(&nats.registry(), "nats", json!({ "subject": "elsewhere.a" }), 2);
    let outlet = &deliveries.outlet;
    let report = outlet.send(&deliveries).await.remove(1);
    assert_eq!(reason(&report), (Some(Reason::TargetMissing), false));
    assert!(report.answer.unwrap().contains("elsewhere.a"));
    assert!(
        outlet.check().await.unwrap_err().as_str().contains("no stream listens on the subject elsewhere.a")
    );

    let report = send_one(&nats.registry(), json!({ "subject": "events.a", "stream": "OTHERS" })).await;
    assert_eq!(reason(&report), (Some(Reason::TargetMissing), false), "{report:?}");
}

#[tokio::test]
async fn a_full_stream_is_a_retry_and_the_part_that_fits_is_delivered() {
    let nats = Nats::start().await;
    let full = stream::Config { max_messages: 2, discard: stream::DiscardPolicy::New, ..events() };
    nats.jetstream().await.update_stream(&full).await.unwrap();
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 3);
    let reports = deliveries.outlet.send(&deliveries).await;
    let codes: Vec<_> = reports.iter().map(|report| report.outcome.code()).collect();
    assert_eq!(codes, ["delivered", "delivered", "retry"]);
    assert_eq!(reason(&reports[2]), (Some(Reason::DestinationFull), false), "{reports:?}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_rejected_and_does_not_fail_its_batch() {
    let nats = Nats::with("max_payload = 4096", None);
    nats.stream(stream::Config { max_message_size: 2048, ..events() }).await;
    let payloads = [10, 5_000, 3_000, 20].map(|length| format!("\"{}\"", "x".repeat(length)));
    let deliveries = deliveries_of(&nats.registry(), "nats", nats.config(), &payloads);
    let reports = deliveries.outlet.send(&deliveries).await;
    for (number, report) in reports.iter().enumerate() {
        let expected = if matches!(number, 1 | 2) {
            Outcome::Rejected { reason: Reason::BodyTooLarge }
        } else {
            Outcome::Delivered
        };
        assert_eq!(report.outcome, expected, "{number}: {report:?}");
    }
}

const USERS: &str = r#"
    authorization { users = [
        { user: admin, password: admin }
        { user: writer, password: "secret-of-the-connection", permissions: { publish: ["events.a.>"], subscribe: ["_INBOX_W.>"] } }
    ] }"#;

#[tokio::test]
async fn wrong_credentials_and_missing_rights_are_retries_with_their_reason() {
    let mut nats = Nats::with(USERS, Some(("admin", "admin")));
    nats.stream(events()).await;
    let login = |password: &str, more: &str| format!("user = 'writer'\npassword = '{password}'\n{more}");
    let prefix = "inbox_prefix = '_INBOX_W'";
    for (more, subject, expected) in [
        (String::new(), "events.a.b", "authorization violation"),
        (login("another-secret", ""), "events.a.b", "authorization violation"),
        (login("secret-of-the-connection", ""), "events.a.b", "Subscription to \"_INBOX."),
        (login("secret-of-the-connection", prefix), "events.b.c", "Publish to \"events.b.c\""),
        (login("secret-of-the-connection", prefix), "events.a.b", ""),
    ] {
        nats.more = more;
        let report = send_one(&nats.registry(), json!({ "subject": subject })).await;
        if expected.is_empty() {
            assert_eq!(report.outcome, Outcome::Delivered);
        } else {
            assert_eq!(report.outcome.reason(), Some(Reason::AccessDenied), "{expected}: {report:?}");
            let answer = report.answer.unwrap();
            assert!(answer.contains(expected) && !answer.contains("secret"), "{expected}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_token_and_an_nkey_are_accepted() {
    let (seed, public) = (
        "SUAHAZ3POV2GE33YEB2GK43UOMQHAZ3POV2GE33YEB2GK43UOMQDCMQJXU",
        "UB637ZKHBU3WJHMGR5BUAYORXR4TGPWH6MSGSI3C7HJBCRMOKPHFOB2U",
    );
    for (file, more) in [
        ("authorization { token: abc }".to_owned(), "token = 'abc'".to_owned()),
        (format!("authorization {{ users = [{{ nkey: {public} }}] }}"), format!("nkey = '{seed}'")),
    ] {
        let mut nats = Nats::with(&file, None);
        nats.more = more;
        let report = send_one(&nats.registry(), json!({ "subject": "events.a" })).await;
        // There is no stream, but the login has succeeded.
        assert_eq!(report.outcome.reason(), Some(Reason::TargetMissing), "{report:?}");
        nats.more = String::new();
        let report = send_one(&nats.registry(), json!({ "subject": "events.a" })).await;
        assert_eq!(report.outcome.reason(), Some(Reason::AccessDenied), "{report:?}");
    }
}

#[tokio::test]
async fn tls_needs_the_authority_of_the_configuration() {
    let server = PrivateServer::start_in(NATS, |folder| {
        certificates(folder);
        let path = |name: &str| folder.join(name).into_os_string();
        [
            "--tlsverify".into(),
            "--tlscert".into(),
            path("server.pem"),
            "--tlskey".into(),
            path("server.key"),
            "--tlscacert".into(),
            path("ca.pem"),
        ]
        .to_vec()
    })
    .unwrap();
    let path = |name: &str| Path::join(server.directory(), name).display().to_string();
    let with = format!(
        "ca_file = '{}'\ncert_file = '{}'\nkey_file = '{}'",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    for (more, expected) in [("", Reason::TlsFailed), (with.as_str(), Reason::TargetMissing)] {
        let section = format!("[sinks.nats]\nservers = ['tls://localhost:{}']\n{more}", server.port());
        let report = send_one(&registry(&section), json!({ "subject": "events.a" })).await;
        assert_eq!(report.outcome.reason(), Some(expected), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_arrive_in_the_order_of_the_log() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    database
        .execute(
            "select outbox.subscribe('all', array['**'], 'nats', \
             config => '{\"subject\": \"events.{topic}\"}')",
        )
        .await;
    database
        .execute(
            "select outbox.publish('shop.orders.create', jsonb_build_object('n', n)) \
             from generate_series(1, 1000) as n",
        )
        .await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&connections(&nats.section())).unwrap()
    })
    .await;
    let settled = async || {
        let left = database
            .count(
                "select (select count(*) \
                 from outbox.owed) + (select 1000 - count(*) from outbox.events)",
            )
            .await;
        left == 0 && nats.received().await.len() == 1000
    };
    eventually("everything is settled", settled).await;
    relay.stop().await;
    let sent: Vec<String> = sqlx::query_scalar("select payload::text from outbox.events order by position")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let received: Vec<String> = nats.received().await.into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_python_client_reads_every_message_in_order_with_its_headers() {
    let nats = Nats::start().await;
    let config = json!({ "subject": "events.{topic}.{key}", "message_id": "{id}/test" });
    let mut deliveries = deliveries(&nats.registry(), "nats", config, 120);
    let hostile = Event {
        key: Some("a..b *>$\r\nNats-Rollup: all ë%".to_owned()),
        headers: r#"{"nats-rollup": "all", "x-note": "50% zoë"}"#.to_owned(),
        ..(*deliveries[7].event).clone()
    };
    deliveries[7].event = hostile.into();
    let reports = deliveries.outlet.send(&deliveries).await;
    assert!(reports.iter().all(|report| report.outcome == Outcome::Delivered), "{reports:?}");
    let url = format!("nats://127.0.0.1:{}", nats.server.port());
    let printed =
        clients::python("nats_reads.py", &[("NATS_URL", &url), ("STREAM", "EVENTS"), ("COUNT", "120")]).await;
    for (line, delivery) in printed.lines().zip(&deliveries) {
        let message: Value = serde_json::from_str(line).unwrap();
        let id = delivery.event.id.to_string();
        assert_eq!(message["payload"], delivery.event.payload);
        assert_eq!(
            (&message["headers"]["pgoutbox-id"], &message["headers"]["Nats-Msg-Id"]),
            (&json!(id), &json!(format!("{id}/test")))
        );
    }
    let message: Value = serde_json::from_str(printed.lines().nth(7).unwrap()).unwrap();
    assert_eq!(message["subject"], "events.public.orders.create.a._.b______Nats-Rollup:_all_ë%");
    assert_eq!(message["headers"]["pgoutbox-key"], "a..b *>$%0D%0ANats-Rollup: all %C3%AB%25");
    assert_eq!(
        (&message["headers"]["header-nats-rollup"], &message["headers"]["x-note"]),
        (&json!("all"), &json!("50%25 zo%C3%AB"))
    );
}
