//! The Kafka sink with an in-memory broker (tansu, which `make clients` installs), or the one in
//! KAFKA_BROKERS.

use std::{collections::BTreeMap, time::Duration};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::telemetry::Signal,
    sink::Registry,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    mocking::MockCluster,
    producer::DefaultProducerContext,
};
use serde_json::{Value, json};

use super::tansu;
use crate::{
    sink_contract::Destination,
    support::{
        Database, RelayBox, clients,
        deliveries::{connections, deliveries, deliveries_of, reasons, registry},
        relay::settings,
        server::{PrivateServer, eventually},
    },
};

/// A record as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) payload: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Record {
    /// The field `n` of the payload.
    pub(crate) fn n(&self) -> u64 {
        serde_json::from_str::<Value>(&self.payload).unwrap()["n"].as_u64().unwrap()
    }
}

/// A cluster with a topic for one test.
pub(crate) struct Topic {
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
    pub(crate) server: Option<PrivateServer>,
    pub(crate) brokers: String,
    pub(crate) name: String,
}

impl Topic {
    /// A topic on a broker.
    pub(crate) async fn new(partitions: i32) -> Self {
        match std::env::var_os("KAFKA_BROKERS") {
            Some(brokers) => Self::on(brokers.into_string().unwrap(), None, partitions).await,
            None => Self::private(partitions).await,
        }
    }

    /// A topic on a broker of its own, which forgets everything when it is started again.
    pub(crate) async fn private(partitions: i32) -> Self {
        let server = tansu::start(None);
        Self::on(format!("127.0.0.1:{}", server.port()), Some(server), partitions).await
    }

    async fn on(brokers: String, server: Option<PrivateServer>, partitions: i32) -> Self {
        let name = format!("it-{}", uuid::Uuid::new_v4().simple());
        let topic = Self { mock: None, server, brokers, name };
        topic.create(&topic.name, partitions).await;
        topic
    }

    /// A topic on a mock cluster, which can simulate faults.
    pub(crate) fn mocked(partitions: i32) -> Self {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("orders", partitions, 1).unwrap();
        Self { brokers: mock.bootstrap_servers(), mock: Some(mock), server: None, name: "orders".to_owned() }
    }

    pub(crate) fn mock(&self) -> &MockCluster<'static, DefaultProducerContext> {
        self.mock.as_ref().unwrap()
    }

    pub(crate) async fn create(&self, name: &str, partitions: i32) {
        if let Some(mock) = &self.mock {
            return mock.create_topic(name, partitions, 1).unwrap();
        }
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let made = admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        assert!(made[0].is_ok(), "{made:?}");
    }

    /// The sink, with further lines of configuration.
    pub(crate) fn sink(&self, more: &str) -> Registry {
        registry(&self.section(more))
    }

    pub(crate) fn section(&self, more: &str) -> String {
        format!("[sinks.kafka]\nbrokers = {:?}\n{more}\n", self.brokers)
    }

    /// All records of a topic, by partition.
    pub(crate) async fn records_of(&self, topic: &str) -> Vec<Record> {
        let (brokers, topic) = (self.brokers.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || read(&brokers, &topic)).await.unwrap()
    }

    pub(crate) async fn records(&self) -> Vec<Record> {
        self.records_of(&self.name).await
    }
}

fn read(brokers: &str, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "it")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("allow.auto.create.topics", "false")
        .create()
        .unwrap();
    let limit = Duration::from_secs(20);
    let metadata = consumer.fetch_metadata(Some(topic), limit).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut records = Vec::new();
    let mut ended = std::collections::BTreeSet::new();
    while ended.len() < partitions {
        match consumer.poll(limit).expect("a partition is read to its end in time") {
            Ok(message) => records.push(Record {
                partition: message.partition(),
                key: message.key().map(|key| String::from_utf8(key.to_vec()).unwrap()),
                payload: String::from_utf8(message.payload().unwrap_or_default().to_vec()).unwrap(),
                headers: message
                    .headers()
                    .map(|headers| {
                        headers
                            .iter()
                            .map(|header| {
                                (
                                    header.key.to_owned(),
                                    String::from_utf8(header.value.unwrap_or_default().to_vec()).unwrap(),
                                )
                            })
                            .collect()
                    })
                    .unwrap_or_default(),
            }),
            Err(KafkaError::PartitionEOF(partition)) => {
                ended.insert(partition);
            }
            Err(error) => panic!("{error}"),
        }
    }
    records.sort_by_key(|record| record.partition); // stable: each partition stays in its order
    records
}

impl Destination for Topic {
    const KIND: &'static str = "kafka";

    async fn start() -> Self {
        Self::new(1).await
    }

    fn section(&self) -> String {
        Self::section(self, "")
    }

    fn nowhere() -> Option<Registry> {
        Some(registry(
            "[sinks.kafka]\nbrokers = ['127.0.0.1:9']\nclient_id = 'secret-of-the-connection'\ntimeout = '1s'",
        ))
    }

    fn config(&self) -> Value {
        json!({ "topic": self.name })
    }

    async fn received(&self) -> Vec<(String, String)> {
        self.records()
            .await
            .into_iter()
            .map(|record| (record.headers["pgoutbox-id"].clone(), record.payload))
            .collect()
    }

    async fn markers(&self) -> Vec<Option<String>> {
        self.records().await.iter().map(|record| record.headers.get("pgoutbox-replay").cloned()).collect()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({}), "topic"),
            (json!({ "topic": "" }), "1 to 1024"),
            (json!({ "topic": "two words" }), "config.topic"),
            (json!({ "topic": "{tenant}" }), "tenant"),
            (json!({ "topic": "a", "key": "{tenant}" }), "tenant"),
            (json!({ "topic": "a", "body": "xml" }), "xml"),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_the_key_and_the_attributes_of_the_event_as_headers() {
    let topic = Topic::new(1).await;
    let mut deliveries = deliveries(&topic.sink(""), "kafka", topic.config(), 1);
    (deliveries[0].attempt, deliveries[0].repeated) = (2, true);
    deliveries.outlet.send(&deliveries).await;
    let event = &deliveries[0].event;
    let [record] = topic.records().await.try_into().unwrap();
    assert_eq!(record.key, event.key);
    assert_eq!(record.headers["pgoutbox-id"], event.id.to_string());
    assert_eq!(record.headers["pgoutbox-topic"], event.topic);
    assert_eq!(record.headers["pgoutbox-organization"], "acme");
    assert_eq!(record.headers["pgoutbox-schema-version"], "1");
    assert_eq!(record.headers["content-type"], "application/json");
    assert_eq!(record.headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert!(!record.headers.contains_key("pgoutbox-user-id"));
    assert_eq!(record.headers["pgoutbox-attempt"], "2");
    assert_eq!(record.headers["pgoutbox-possible-duplicate"], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_cannot_forge_headers_of_the_sink() {
    let topic = Topic::new(1).await;
    for (body, id) in [("raw", "pgoutbox-id"), ("cloudevents-binary", "ce_id")] {
        let name = format!("{}.{body}", topic.name);
        topic.create(&name, 1).await;
        let mut deliveries = deliveries(&topic.sink(""), "kafka", json!({ "topic": name, "body": body }), 1);
        let forged = json!({
            "pgoutbox-id": "forged", "ce_id": "forged", "Content-Type": "text/html", "note": "mine",
        });
        std::sync::Arc::make_mut(&mut deliveries[0].event).headers = forged.to_string();
        deliveries.outlet.send(&deliveries).await;
        let [record] = topic.records_of(&name).await.try_into().unwrap();
        assert_eq!(record.headers[id], deliveries[0].event.id.to_string());
        assert_eq!(record.headers["content-type"], "application/json");
        assert_eq!(
            (record.headers["note"].as_str(), record.headers[&format!("header-{id}")].as_str()),
            ("mine", "forged")
        );
        assert_eq!(record.headers["header-Content-Type"], "text/html");
        assert!(!record.headers.contains_key("Content-Type"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_consumer_reads_what_was_written() {
    let topic = Topic::new(1).await;
    let deliveries = deliveries(&topic.sink("compression = 'gzip'"), "kafka", topic.config(), 20);
    deliveries.outlet.send(&deliveries).await;
    let printed =
        clients::python("kafka_reads.py", &[("BROKERS", &topic.brokers), ("TOPIC", &topic.name)]).await;
    let read: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read.len(), 20, "{printed}");
    for (record, delivery) in read.iter().zip(&deliveries) {
        assert_eq!(record["value"], delivery.event.payload);
        assert_eq!(record["key"], *delivery.event.key.as_ref().unwrap());
        assert_eq!(record["headers"]["pgoutbox-id"], delivery.event.id.to_string());
        assert_eq!(record["headers"]["pgoutbox-topic"], delivery.event.topic);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_event_in_binary_mode_follows_its_kafka_binding() {
    let topic = Topic::new(1).await;
    let config = json!({ "topic": topic.name, "body": "cloudevents-binary" });
    let deliveries = deliveries(&topic.sink(""), "kafka", config, 1);
    deliveries.outlet.send(&deliveries).await;
    let [record] = topic.records().await.try_into().unwrap();
    assert_eq!(record.payload, deliveries[0].event.payload);
    assert_eq!(record.headers["content-type"], "application/json");
    assert_eq!(record.headers["ce_specversion"], "1.0");
    assert_eq!(record.headers["ce_id"], deliveries[0].event.id.to_string());
    assert_eq!(record.headers["ce_type"], deliveries[0].event.topic);
    assert_eq!(record.headers["ce_partitionkey"], "order-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_and_key_may_depend_on_the_event_and_are_valid() {
    let topic = Topic::new(1).await;
    let name = format!("{}.acme.public.orders.create", topic.name);
    topic.create(&name, 1).await;
    let config = json!({
        "topic": format!("{}.{{organization}}.{{topic}}", topic.name),
        "key": "{organization}/{user_id:none}",
    });
    let mut deliveries = deliveries(&topic.sink(""), "kafka", config, 3);
    std::sync::Arc::make_mut(&mut deliveries[1].event).organization = Some("acme/eu".to_owned());
    std::sync::Arc::make_mut(&mut deliveries[2].event).organization = None;
    topic.create(&name.replace("acme", "acme_eu"), 1).await;
    let reports = deliveries.outlet.send(&deliveries).await;
    assert_eq!(
        reasons(&reports),
        [("delivered", None), ("delivered", None), ("rejected", Some(Reason::TemplateFailed))],
        "{reports:#?}"
    );
    let [record] = topic.records_of(&name).await.try_into().unwrap();
    assert_eq!(record.key.as_deref(), Some("acme/none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_key_is_a_record_without_one() {
    let topic = Topic::new(1).await;
    let mut deliveries = deliveries(&topic.sink(""), "kafka", topic.config(), 1);
    std::sync::Arc::make_mut(&mut deliveries[0].event).key = None;
    deliveries.outlet.send(&deliveries).await;
    assert_eq!(topic.records().await[0].key, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_a_dead_letter_and_its_neighbours_arrive() {
    let topic = Topic::new(1).await;
    let payloads = [
        "{\"n\": 0}".to_owned(),
        format!("{{\"n\": 1, \"long\": \"{}\"}}", "x".repeat(3_000)),
        "{\"n\": 2}".to_owned(),
    ];
    let deliveries = deliveries_of(
        &topic.sink("options = ['message.max.bytes=2000']"),
        "kafka",
        topic.config(),
        &payloads,
    );
    let reports = deliveries.outlet.send(&deliveries).await;
    assert_eq!(
        reasons(&reports),
        [("delivered", None), ("rejected", Some(Reason::BodyTooLarge)), ("delivered", None)],
        "{reports:#?}"
    );
    assert_eq!(topic.records().await.iter().map(Record::n).collect::<Vec<_>>(), [0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_a_dead_letter_and_the_others_of_its_batch_arrive() {
    let topic = Topic::new(1).await;
    let config = json!({ "topic": format!("{}{{user_id:}}", topic.name) });
    let mut deliveries = deliveries(&topic.sink("timeout = '4s'"), "kafka", config, 3);
    std::sync::Arc::make_mut(&mut deliveries[1].event).user_id = Some("-mistyped".to_owned());
    let outlet = &deliveries.outlet;
    let reports = outlet.send(&deliveries).await;
    assert_eq!(
        reasons(&reports),
        [("delivered", None), ("retry", Some(Reason::TargetMissing)), ("delivered", None)],
        "{reports:#?}"
    );
    assert!(reports[1].answer.as_ref().unwrap().contains("-mistyped\""), "{reports:?}");
    eventually("the topic has been missing for long enough", async || {
        reasons(&outlet.send(&deliveries[1..2]).await) == [("rejected", Some(Reason::TargetMissing))]
    })
    .await;
    // Once the topic is created, nothing becomes a dead letter because the client remembers an old answer.
    topic.create(&format!("{}-mistyped", topic.name), 1).await;
    eventually("the topic is known", async || {
        let outcome = outlet.send(&deliveries[1..2]).await.remove(0).outcome;
        assert!(!matches!(outcome, Outcome::Rejected { .. }), "{outcome:?}");
        outcome == Outcome::Delivered
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_topic_that_is_missing_and_creates_none() {
    let topic = Topic::new(1).await;
    let name = format!("{}-mistyped", topic.name);
    let outlet = topic.sink("create_topics = true").bind("kafka", &json!({ "topic": name })).unwrap();
    for _ in 0..2 {
        assert!(outlet.check().await.unwrap_err().as_str().contains(&name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_arrive_through_a_relay_each_key_in_the_order_of_the_log() {
    let topic = Topic::new(4).await;
    let database = Database::new().await;
    database
        .execute(format!("select outbox.subscribe('kafka', array['**'], 'kafka', '{}')", topic.config()))
        .await;
    let sinks = connections(&topic.section(""));
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&sinks).unwrap()
    })
    .await;
    for _ in 0..10 {
        database
            .execute(
                "insert into outbox.events (topic, key, payload) \
                 select 'shop.orders.create', 'order-' || n % 7, jsonb_build_object('n', 0) \
                     from generate_series(1, 100) as n",
            )
            .await;
    }
    let mut left = 1_000;
    while left > 0 {
        relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "settled", .. })).await;
        left -= 1;
    }
    let records = topic.records().await;
    assert_eq!(records.len(), 1_000);
    assert!(relay.stop().await.complete);
    assert_each_key_in_order(&database, &records).await;
    database.drop().await;
}

/// Asserts that each key is in one partition, in the order of the log.
async fn assert_each_key_in_order(database: &Database, records: &[Record]) {
    let positions: Vec<(String, i64)> = sqlx::query_as("select id::text, position from outbox.events")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let positions: BTreeMap<String, i64> = positions.into_iter().collect();
    let mut last: BTreeMap<String, (i32, i64)> = BTreeMap::new();
    for record in records {
        let position = positions[&record.headers["pgoutbox-id"]];
        let before = last.insert(record.key.clone().unwrap(), (record.partition, position));
        if let Some((partition, earlier)) = before {
            assert_eq!(partition, record.partition, "one partition for each key");
            assert!(earlier < position, "{earlier} came before {position} of {:?}", record.key);
        }
    }
}
