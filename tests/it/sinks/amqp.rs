//! The AMQP sink with a RabbitMQ that all tests share. It takes seconds to start and ends with the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    message::BasicGetMessage,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use pgoutbox::{
    delivery::{Outcome, Reason},
    lab::private_server::rabbitmq,
    sink::Registry,
};
use serde_json::{Value, json};

use crate::{
    sink_contract::Destination,
    support::{
        Database, RelayBox, clients,
        deliveries::{connections, deliveries, deliveries_of, reasons, registry},
        relay::settings,
        server::{PrivateServer, eventually},
    },
};

/// Starts a separate server.
pub(crate) fn start() -> PrivateServer {
    rabbitmq::start().unwrap()
}

fn shared() -> &'static PrivateServer {
    static SHARED: OnceLock<PrivateServer> = OnceLock::new();
    SHARED.get_or_init(start)
}

pub(crate) fn url(server: &PrivateServer) -> String {
    format!("amqp://guest:guest@127.0.0.1:{}", server.port())
}

/// A client besides the sink.
pub(crate) async fn client(server: &PrivateServer) -> (Connection, Channel) {
    // The server listens before it knows its users.
    let connected = std::cell::RefCell::new(None);
    eventually("RabbitMQ lets us in", async || {
        let connection = Connection::connect(&url(server), ConnectionProperties::default()).await.ok();
        connected.replace(connection).is_some() || connected.borrow().is_some()
    })
    .await;
    let connection = connected.take().unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A queue for one test.
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) channel: Channel,
    _connection: Connection,
}

impl Queue {
    pub(crate) async fn new() -> Self {
        let (_connection, channel) = client(shared()).await;
        let queue = Self { name: format!("it-{}", uuid::Uuid::new_v4().simple()), channel, _connection };
        queue.declare(&queue.name, FieldTable::default()).await;
        queue
    }

    pub(crate) async fn declare(&self, name: &str, arguments: FieldTable) {
        self.channel.queue_declare(name.into(), QueueDeclareOptions::default(), arguments).await.unwrap();
    }

    /// An exchange, and the queue bound to it.
    async fn bind(&self, exchange: &str, key: &str) {
        let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
        self.channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, options, none.clone())
            .await
            .unwrap();
        self.channel
            .queue_bind(
                self.name.as_str().into(),
                exchange.into(),
                key.into(),
                QueueBindOptions::default(),
                none,
            )
            .await
            .unwrap();
    }

    pub(crate) async fn messages(&self) -> Vec<BasicGetMessage> {
        let mut messages = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = self.channel.basic_get(self.name.as_str().into(), options).await.unwrap() {
            messages.push(message);
        }
        messages
    }

    fn sink(&self) -> Registry {
        self.registry()
    }
}

fn id(message: &BasicGetMessage) -> String {
    message.properties.message_id().as_ref().unwrap().to_string()
}

impl Destination for Queue {
    const KIND: &'static str = "amqp";

    async fn start() -> Self {
        Self::new().await
    }

    fn section(&self) -> String {
        format!("[sinks.amqp]\nurl = '{}'\ntimeout = '5s'", url(shared()))
    }

    fn nowhere() -> Option<Registry> {
        Some(registry("[sinks.amqp]\nurl = 'amqp://a:secret-of-the-connection@127.0.0.1:9'"))
    }

    fn config(&self) -> Value {
        json!({ "routing_key": self.name })
    }

    async fn received(&self) -> Vec<(String, String)> {
        let messages = self.messages().await;
        messages
            .iter()
            .map(|message| (id(message), String::from_utf8(message.data.clone()).unwrap()))
            .collect()
    }

    async fn markers(&self) -> Vec<Option<String>> {
        let header = |message: &BasicGetMessage| {
            let headers = message.properties.headers().as_ref().unwrap();
            let value = headers.inner().get("pgoutbox-replay")?;
            Some(value.as_long_string().unwrap().to_string())
        };
        self.messages().await.iter().map(header).collect()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({ "exchange": "{tenant}" }), "tenant"),
            (json!({ "exchange": "" }), "1 to 1024"),
            (json!({ "routing_key": "x".repeat(256) }), "config.routing_key"),
            (json!({ "body": "xml" }), "xml"),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_persistent_and_has_the_attributes_of_the_event() {
    let queue = Queue::new().await;
    let mut deliveries = deliveries(&queue.sink(), "amqp", queue.config(), 1);
    (deliveries[0].attempt, deliveries[0].repeated) = (2, true);
    deliveries.outlet.send(&deliveries).await;
    let event = &deliveries[0].event;
    let [message] = queue.messages().await.try_into().unwrap();
    let properties = &message.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), event.id.to_string());
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), event.topic);
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(properties.timestamp().unwrap(), u64::try_from(event.created_at.timestamp()).unwrap());
    let headers: BTreeMap<String, String> = properties
        .headers()
        .as_ref()
        .unwrap()
        .inner()
        .iter()
        .map(|(name, value)| match value {
            AMQPValue::LongString(text) => (name.to_string(), text.to_string()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(headers["pgoutbox-key"], "order-1");
    assert_eq!(headers["pgoutbox-organization"], "acme");
    assert_eq!(headers["pgoutbox-attempt"], "2");
    assert_eq!(headers["pgoutbox-possible-duplicate"], "true");
    assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_cannot_forge_headers_of_the_sink_or_the_server() {
    let queue = Queue::new().await;
    for (body, id) in [("raw", "pgoutbox-id"), ("cloudevents-binary", "cloudEvents_id")] {
        let config = json!({ "routing_key": queue.name, "body": body });
        let mut deliveries = deliveries(&queue.sink(), "amqp", config, 1);
        let forged =
            json!({ "pgoutbox-id": "forged", "cloudEvents_id": "forged", "CC": "another", "ccy": "mine" });
        Arc::make_mut(&mut deliveries[0].event).headers = forged.to_string();
        let reports = deliveries.outlet.send(&deliveries).await;
        assert_eq!(reasons(&reports), [("delivered", None)], "{reports:?}");
        let [message] = queue.messages().await.try_into().unwrap();
        let headers = message.properties.headers().as_ref().unwrap().inner();
        let text = |name: &str| headers.get(name).map(|value| value.as_long_string().unwrap().to_string());
        assert_eq!(text(id), Some(deliveries[0].event.id.to_string()));
        assert_eq!(text(&format!("header-{id}")).as_deref(), Some("forged"));
        assert_eq!(
            (text("ccy").as_deref(), text("header-CC").as_deref(), text("CC")),
            (Some("mine"), Some("another"), None)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_headers_larger_than_a_frame_is_a_dead_letter_and_its_neighbours_arrive() {
    let queue = Queue::new().await;
    let mut deliveries = deliveries(&queue.sink(), "amqp", queue.config(), 3);
    let outlet = deliveries.outlet.clone();
    let mut second = |user: usize, header: usize| {
        let event = Arc::make_mut(&mut deliveries[1].event);
        event.user_id = Some("x".repeat(user));
        event.headers = json!({ "h".repeat(header): "" }).to_string();
        deliveries.clone()
    };
    for (deliveries, reason) in
        [(second(200_000, 1), Reason::BodyTooLarge), (second(1, 256), Reason::PayloadUnusable)]
    {
        let reports = outlet.send(&deliveries).await;
        assert_eq!(
            reasons(&reports),
            [("delivered", None), ("rejected", Some(reason)), ("delivered", None)],
            "{reports:#?}"
        );
    }
    let deliveries = second(100_000, 255);
    let reports = outlet.send(&deliveries[1..2]).await;
    assert_eq!(reasons(&reports), [("delivered", None)], "{reports:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_to_its_exchange_and_a_missing_exchange_fails_no_other() {
    let queue = Queue::new().await;
    let exchange = format!("{}.acme", queue.name);
    queue.bind(&exchange, "public.orders.*").await;
    let config = json!({ "exchange": format!("{}.{{organization}}", queue.name) });
    let mut deliveries = deliveries(&queue.sink(), "amqp", config, 9);
    for one in [0, 4, 8] {
        Arc::make_mut(&mut deliveries[one].event).organization = Some("globex".to_owned());
    }
    let outlet = &deliveries.outlet;
    let reports = outlet.send(&deliveries).await;
    for (at, report) in reports.iter().enumerate() {
        if [0, 4, 8].contains(&at) {
            assert_eq!(
                reasons(std::slice::from_ref(report)),
                [("retry", Some(Reason::TargetMissing))],
                "{report:?}"
            );
            assert!(report.answer.as_ref().unwrap().contains("globex") && !report.ambiguous, "{report:?}");
        } else {
            assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
        }
    }
    assert_eq!(queue.messages().await.len(), 6);
    queue.bind(&format!("{}.globex", queue.name), "#").await;
    assert_eq!(outlet.send(&deliveries[..1]).await[0].outcome, Outcome::Delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_event_fails_alone() {
    let queue = Queue::new().await;
    queue.bind(&queue.name, "wanted").await;
    let config = json!({ "exchange": queue.name, "routing_key": "{user_id:wanted}" });
    let mut deliveries = deliveries(&queue.sink(), "amqp", config, 200);
    for delivery in deliveries.iter_mut().step_by(7) {
        Arc::make_mut(&mut delivery.event).user_id = Some("unwanted".to_owned());
    }
    let reports = deliveries.outlet.send(&deliveries).await;
    for (at, report) in reports.iter().enumerate() {
        let expected = if at % 7 == 0 { ("retry", Some(Reason::Unroutable)) } else { ("delivered", None) };
        assert_eq!(reasons(std::slice::from_ref(report)), [expected], "{at}: {report:?}");
    }
    let arrived: Vec<_> = queue.messages().await.iter().map(id).collect();
    let wanted: Vec<_> = deliveries
        .iter()
        .filter(|one| one.event.user_id.is_none())
        .map(|one| one.event.id.to_string())
        .collect();
    assert_eq!(arrived, wanted, "in the order of the log");
    let config = json!({ "exchange": queue.name, "routing_key": "unwanted", "mandatory": false });
    let unwanted = crate::support::deliveries::deliveries(&queue.sink(), "amqp", config, 1);
    assert_eq!(unwanted.outlet.send(&unwanted).await[0].outcome, Outcome::Delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_a_retry_for_the_messages_it_refused() {
    let queue = Queue::new().await;
    let name = format!("{}-small", queue.name);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(2));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    queue.declare(&name, arguments).await;
    let deliveries = deliveries(&queue.sink(), "amqp", json!({ "routing_key": name }), 4);
    let outlet = &deliveries.outlet;
    for delivery in &deliveries[..2] {
        assert_eq!(outlet.send(std::slice::from_ref(delivery)).await[0].outcome, Outcome::Delivered);
    }
    let reports = outlet.send(&deliveries[2..]).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::DestinationFull)); 2], "{reports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_a_dead_letter_and_its_neighbours_are_not() {
    let queue = Queue::new().await;
    let payloads = ["1".to_owned(), format!("\"{}\"", "x".repeat(200_000)), "3".to_owned()];
    let deliveries = deliveries_of(&queue.sink(), "amqp", queue.config(), &payloads);
    let outlet = &deliveries.outlet;
    let reports = outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports[1..2]), [("rejected", Some(Reason::BodyTooLarge))], "{reports:#?}");
    for neighbour in [0, 2] {
        let report = &reports[neighbour];
        assert!(
            report.outcome == Outcome::Delivered || (report.outcome.code() == "retry" && report.ambiguous),
            "{report:?}"
        );
        assert_eq!(outlet.send(&deliveries[neighbour..=neighbour]).await[0].outcome, Outcome::Delivered);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_a_missing_virtual_host_and_missing_rights_have_different_reasons() {
    let queue = Queue::new().await;
    let port = shared().port();
    for (url, reason) in [
        (format!("amqp://guest:secret-of-the-connection@127.0.0.1:{port}"), Reason::AccessDenied),
        (format!("amqp://127.0.0.1:{port}/nowhere"), Reason::TargetMissing),
    ] {
        let sink = registry(&format!("[sinks.amqp]\nurl = '{url}'"));
        let deliveries = deliveries(&sink, "amqp", queue.config(), 2);
        let outlet = &deliveries.outlet;
        let reports = outlet.send(&deliveries).await;
        assert_eq!(reasons(&reports), [("retry", Some(reason)); 2], "{reports:#?}");
        let shown = format!("{reports:?} {:?}", outlet.check().await.unwrap_err());
        assert!(!shown.contains("secret-of-the-connection"), "{shown}");
    }
    // An exchange without permission to publish.
    let internal = ExchangeDeclareOptions { internal: true, ..ExchangeDeclareOptions::default() };
    queue
        .channel
        .exchange_declare(queue.name.as_str().into(), ExchangeKind::Fanout, internal, FieldTable::default())
        .await
        .unwrap();
    let deliveries = deliveries(&queue.sink(), "amqp", json!({ "exchange": queue.name }), 2);
    let outlet = &deliveries.outlet;
    let reports = outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::AccessDenied)); 2], "{reports:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_an_exchange_that_is_missing() {
    let queue = Queue::new().await;
    let outlet = queue.sink().bind("amqp", &json!({ "exchange": queue.name })).unwrap();
    let problem = outlet.check().await.unwrap_err();
    assert!(problem.as_str().contains(&queue.name), "{problem}");
    queue.bind(&queue.name, "#").await;
    assert_eq!(outlet.check().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_client_reads_what_was_published() {
    let queue = Queue::new().await;
    let deliveries = deliveries(&queue.sink(), "amqp", queue.config(), 20);
    deliveries.outlet.send(&deliveries).await;
    let printed = clients::python("amqp_reads.py", &[("URL", &url(shared())), ("QUEUE", &queue.name)]).await;
    let read: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read.len(), 20, "{printed}");
    for (message, delivery) in read.iter().zip(&deliveries) {
        assert_eq!(message["body"], delivery.event.payload);
        assert_eq!(message["message_id"], delivery.event.id.to_string());
        assert_eq!(message["type"], delivery.event.topic);
        assert_eq!(message["headers"]["pgoutbox-key"], *delivery.event.key.as_ref().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_arrive_through_a_relay_in_the_order_of_the_log() {
    let queue = Queue::new().await;
    let database = Database::new().await;
    database
        .execute(format!("select outbox.subscribe('amqp', array['**'], 'amqp', '{}')", queue.config()))
        .await;
    database
        .execute(
            "insert into outbox.events (topic, payload) \
             select 'shop.orders.create', jsonb_build_object('n', n) from generate_series(1, 1000) as n",
        )
        .await;
    let sinks = connections(&format!("[sinks.amqp]\nurl = '{}'", url(shared())));
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&sinks).unwrap()
    })
    .await;
    for _ in 0..1_000 {
        relay
            .wait(|signal| {
                matches!(signal, pgoutbox::relay::telemetry::Signal::Settled { verdict: "settled", .. })
            })
            .await;
    }
    let ids: Vec<String> = sqlx::query_scalar("select id::text from outbox.events order by position")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let arrived: Vec<_> = queue.messages().await.iter().map(id).collect();
    assert_eq!(arrived, ids);
    relay.stop().await;
    database.drop().await;
}
