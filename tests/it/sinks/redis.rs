//! The redis sink with a server for each test, read with redis-cli instead of the client library.

use std::{collections::HashMap, process::Command};

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
        deliveries::{connections, deliveries, registry},
        relay::settings,
        server::{Kind, PrivateServer, certificates, eventually},
    },
};

const REDIS: Kind = Kind {
    program: "redis-server",
    package: "redis-server",
    arguments: |_, port| {
        let port = port.to_string();
        ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]
            .iter()
            .map(Into::into)
            .collect()
    },
};

/// A server that speaks only TLS, with certificates in its directory.
pub(super) fn tls_server(more: &[&str]) -> PrivateServer {
    let kind = Kind {
        arguments: |_, port| {
            ["--port", "0", "--save", "", "--tls-port", &port.to_string()].iter().map(Into::into).collect()
        },
        ..REDIS
    };
    let server = PrivateServer::start_in(kind, |folder| {
        certificates(folder);
        let files = [
            ("--tls-cert-file", "server.pem"),
            ("--tls-key-file", "server.key"),
            ("--tls-ca-cert-file", "ca.pem"),
        ];
        let files = files.map(|(option, name)| [option.into(), folder.join(name).into_os_string()]);
        files.into_iter().flatten().chain(more.iter().map(Into::into)).collect()
    });
    server.unwrap()
}

/// A server, and the section with its address.
pub(crate) struct Redis {
    pub(crate) server: PrivateServer,
    url: String,
    /// Further lines of the section.
    pub(super) more: String,
}

impl Redis {
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let server = PrivateServer::start(REDIS, arguments).unwrap();
        Self { url: format!("redis://127.0.0.1:{}", server.port()), more: String::new(), server }
    }

    /// A server with TLS and a password, which takes clients without a certificate.
    pub(crate) fn with_tls(password: &str) -> Self {
        let server = tls_server(&["--tls-auth-clients", "no", "--requirepass", password]);
        Self { url: format!("rediss://localhost:{}", server.port()), more: String::new(), server }
    }

    /// Runs a command over TLS.
    pub(crate) fn tls_cli(&self, password: &str, arguments: &[&str]) -> String {
        self.cli(&[&["--tls", "--insecure", "-a", password], arguments].concat())
    }

    pub(crate) fn section(&self) -> String {
        format!("[sinks.redis]\nurl = '{}'\n{}", self.url, self.more)
    }

    pub(super) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.server.port().to_string();
        let output = Command::new("redis-cli")
            .args(["-p", &port, "--no-auth-warning"])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Fields of each entry.
    fn entries(&self, stream: &str) -> Vec<HashMap<String, String>> {
        let answer: Value = serde_json::from_str(&self.cli(&["--json", "-3", "XRANGE", stream, "-", "+"]))
            .unwrap_or_default();
        let entries = answer.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        entries
            .iter()
            .map(|entry| {
                entry[1].as_array().unwrap().chunks(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
            })
            .collect()
    }
}

pub(super) fn reason(report: &Report) -> (Option<Reason>, bool) {
    (report.outcome.reason(), report.ambiguous)
}

impl Destination for Redis {
    const KIND: &'static str = "redis";

    async fn start() -> Self {
        Self::with(&[])
    }

    fn section(&self) -> String {
        Self::section(self)
    }

    fn nowhere() -> Option<Registry> {
        Some(registry("[sinks.redis]\nurl = 'redis://127.0.0.1:1'\npassword = 'secret-of-the-connection'"))
    }

    fn config(&self) -> Value {
        json!({ "stream": "events" })
    }

    async fn received(&self) -> Vec<(String, String)> {
        self.entries("events")
            .into_iter()
            .map(|mut entry| (entry.remove("id").unwrap(), entry.remove("payload").unwrap()))
            .collect()
    }

    async fn markers(&self) -> Vec<Option<String>> {
        self.entries("events").into_iter().map(|mut entry| entry.remove("pgoutbox-replay")).collect()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({}), "stream"),
            (json!({ "stream": "" }), "1 to 1024 bytes"),
            (json!({ "stream": "{tenant}" }), "tenant"),
            (json!({ "stream": "a", "maxlen": 0 }), "config.maxlen"),
            (json!({ "stream": "a", "body": "cloudevents-binary" }), "config.body"),
        ]
    }
}

#[tokio::test]
async fn an_entry_has_flat_fields_and_the_headers_of_the_publisher() {
    let redis = Redis::start().await;
    let config = json!({ "stream": "events.{topic}.{organization}" });
    let mut deliveries = deliveries(&redis.registry(), "redis", config, 1);
    (deliveries[0].attempt, deliveries[0].repeated) = (2, true);
    let outlet = &deliveries.outlet;
    assert_eq!(outlet.send(&deliveries).await[0].outcome, Outcome::Delivered);
    let entry = redis.entries("events.public.orders.create.acme").remove(0);
    let event = &deliveries[0].event;
    let expected = [
        ("id", event.id.to_string()),
        ("topic", "public.orders.create".to_owned()),
        ("key", "order-1".to_owned()),
        ("organization", "acme".to_owned()),
        ("source", "shop".to_owned()),
        ("schema-version", "1".to_owned()),
        ("pgoutbox-attempt", "2".to_owned()),
        ("pgoutbox-possible-duplicate", "true".to_owned()),
        ("content-type", "application/json".to_owned()),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ("payload", event.payload.clone()),
    ];
    for (name, value) in &expected {
        assert_eq!(entry.get(*name), Some(value), "{name} of {entry:?}");
    }
    assert!(entry["created-at"].ends_with('Z'));
    assert_eq!(entry.len(), expected.len() + 1);
}

#[tokio::test]
async fn a_hash_tag_is_written_in_doubled_braces() {
    let redis = Redis::start().await;
    let deliveries =
        deliveries(&redis.registry(), "redis", json!({ "stream": "{{{organization}}}:events" }), 1);
    deliveries.outlet.send(&deliveries).await;
    assert_eq!(redis.cli(&["XLEN", "{acme}:events"]), "1");
}

#[tokio::test]
async fn a_stream_keeps_about_maxlen_entries() {
    let redis = Redis::with(&["--stream-node-max-entries", "10"]);
    let deliveries = deliveries(&redis.registry(), "redis", json!({ "stream": "events", "maxlen": 50 }), 500);
    deliveries.outlet.send(&deliveries).await;
    let length: u64 = redis.cli(&["XLEN", "events"]).parse().unwrap();
    assert!((50..=70).contains(&length), "{length}");
}

#[tokio::test]
async fn a_cloud_event_is_one_field() {
    let redis = Redis::start().await;
    let deliveries =
        deliveries(&redis.registry(), "redis", json!({ "stream": "events", "body": "cloudevents" }), 1);
    deliveries.outlet.send(&deliveries).await;
    let entry = redis.entries("events").remove(0);
    assert_eq!(entry["content-type"], "application/cloudevents+json; charset=utf-8");
    let event: Value = serde_json::from_str(&entry["payload"]).unwrap();
    assert_eq!((event["id"].as_str(), &event["data"]["n"]), (Some(entry["id"].as_str()), &json!(0)));
}

#[tokio::test]
async fn wrong_credentials_are_a_retry_with_their_reason() {
    let mut redis = Redis::with(&["--requirepass", "secret-of-the-connection"]);
    for (more, expected) in [
        ("", "NOAUTH"),
        ("password = 'another-secret'", "WRONGPASS"),
        ("password = 'secret-of-the-connection'", ""),
    ] {
        redis.more = more.to_owned();
        let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 2);
        let reports = deliveries.outlet.send(&deliveries).await;
        if expected.is_empty() {
            assert_eq!(reports[1].outcome, Outcome::Delivered);
        } else {
            assert_eq!(reason(&reports[1]), (Some(Reason::AccessDenied), false), "{reports:?}");
            let answer = reports[1].answer.as_ref().unwrap();
            assert!(answer.contains(expected) || answer.contains("authentication"), "{answer}");
            assert!(!answer.contains("secret"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_user_without_rights_is_refused_by_check_and_by_send() {
    let mut redis = Redis::start().await;
    assert_eq!(
        redis.cli(&["ACL", "SETUSER", "writer", "on", ">pw", "~events.*", "+xadd", "+ping", "+type"]),
        "OK"
    );
    redis.more = "username = 'writer'\npassword = 'pw'".to_owned();
    for (stream, allowed) in [("events.a", true), ("others", false)] {
        let deliveries = deliveries(&redis.registry(), "redis", json!({ "stream": stream }), 1);
        let outlet = &deliveries.outlet;
        let (checked, report) = (outlet.check().await, outlet.send(&deliveries).await.remove(0));
        assert_eq!(checked.is_ok(), allowed, "{checked:?}");
        assert_eq!(report.outcome.reason(), (!allowed).then_some(Reason::AccessDenied), "{report:?}");
    }
}

#[tokio::test]
async fn a_key_of_another_type_fails_only_its_own_entries() {
    let redis = Redis::start().await;
    redis.cli(&["SET", "events.order-3", "text"]);
    let deliveries = deliveries(&redis.registry(), "redis", json!({ "stream": "events.{key}" }), 20);
    let reports = deliveries.outlet.send(&deliveries).await;
    for (number, report) in (1..).zip(&reports) {
        if number % 10 == 3 {
            assert_eq!(reason(report), (Some(Reason::Refused), false));
            assert!(report.answer.as_ref().unwrap().starts_with("WRONGTYPE"), "{report:?}");
        } else {
            assert_eq!(report.outcome, Outcome::Delivered);
        }
    }
    let fixed = self::deliveries(&redis.registry(), "redis", json!({ "stream": "events.order-3" }), 1);
    assert!(fixed.outlet.check().await.unwrap_err().as_str().contains("string"));
}

#[tokio::test]
async fn tls_needs_the_authority_of_the_configuration() {
    let server = tls_server(&[]);
    let path = |name: &str| server.directory().join(name).display().to_string();
    let with = format!(
        "ca_file = '{}'\ncert_file = '{}'\nkey_file = '{}'",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    for (more, trusted) in [("", false), (with.as_str(), true)] {
        let section = format!("[sinks.redis]\nurl = 'rediss://localhost:{}'\n{more}", server.port());
        let deliveries = deliveries(&registry(&section), "redis", json!({ "stream": "events" }), 1);
        let report = deliveries.outlet.send(&deliveries).await.remove(0);
        assert_eq!(report.outcome.reason(), (!trusted).then_some(Reason::TlsFailed), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_arrive_in_the_order_of_the_log() {
    let (database, redis) = (Database::new().await, Redis::start().await);
    database
        .execute("select outbox.subscribe('all', array['**'], 'redis', config => '{\"stream\": \"events\"}')")
        .await;
    database
        .execute(
            "select outbox.publish('shop.orders.create', jsonb_build_object('n', n)) \
             from generate_series(1, 1000) as n",
        )
        .await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&connections(&redis.section())).unwrap()
    })
    .await;
    eventually("everything is settled", async || {
        database.count("select count(*) from outbox.owed").await == 0
            && redis.cli(&["XLEN", "events"]) == "1000"
    })
    .await;
    relay.stop().await;
    let sent: Vec<String> = sqlx::query_scalar("select payload::text from outbox.events order by position")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let received: Vec<String> = redis.received().await.into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_group_of_python_consumers_reads_every_entry_in_order() {
    let redis = Redis::start().await;
    let mut deliveries = deliveries(&redis.registry(), "redis", json!({ "stream": "events" }), 120);
    let hostile = Event {
        key: Some("zoë\r\n$5".to_owned()),
        headers: r#"{"payload": "not this one", "x-note": "zoë"}"#.to_owned(),
        ..(*deliveries[7].event).clone()
    };
    deliveries[7].event = hostile.into();
    deliveries.outlet.send(&deliveries).await;
    let printed = clients::python(
        "redis_reads.py",
        &[("REDIS_URL", &redis.url), ("STREAM", "events"), ("COUNT", "120")],
    )
    .await;
    let entries: Vec<HashMap<String, String>> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (entry, delivery) in entries.iter().zip(&deliveries) {
        assert_eq!(
            (&entry["id"], &entry["payload"]),
            (&delivery.event.id.to_string(), &delivery.event.payload)
        );
        assert_eq!(entry.get("key"), delivery.event.key.as_ref());
    }
    assert_eq!(
        (entries[7]["header-payload"].as_str(), entries[7]["x-note"].as_str()),
        ("not this one", "zoë")
    );
}
