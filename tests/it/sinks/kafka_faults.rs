//! The Kafka sink with a mock cluster that answers with errors, late or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pgoutbox::{
    cli::config::Config,
    delivery::{Outcome, Reason},
    sink::{Outgoing, Outlet, Report},
};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error};
use serde_json::json;

use super::kafka::{Record, Topic};
use crate::{
    sink_contract::Destination as _,
    support::{
        Database, Recorder, RelayBox,
        deliveries::{connections, deliveries, reasons},
        relay::settings,
        server::eventually,
    },
};

/// Sends until the cluster has stored the record.
async fn stored(outlet: &Outlet, deliveries: &[Outgoing]) {
    eventually("the record is stored", async || {
        reasons(&outlet.send(deliveries).await) == [("delivered", None)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_stays_in_order_while_brokers_fail_and_librdkafka_retries() {
    let topic = Topic::mocked(4);
    // One set of records for each partition and batch: unlike a broker, the mock cluster does not check
    // sequence numbers, by which it would refuse a set after a failed one.
    let deliveries = deliveries(&topic.sink("options = ['linger.ms=50']"), "kafka", topic.config(), 1_000);
    let outlet = &deliveries.outlet;
    for part in deliveries.chunks(250) {
        topic.mock().request_errors(
            Api::Produce,
            &[
                Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                Error::RD_KAFKA_RESP_ERR_NO_ERROR,
                Error::RD_KAFKA_RESP_ERR__TRANSPORT,
                Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
                Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            ],
        );
        let reports = outlet.send(part).await;
        assert!(reasons(&reports).iter().all(|report| *report == ("delivered", None)), "{reports:#?}");
    }
    let records = topic.records().await;
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<String, (i32, u64)> = BTreeMap::new();
    for record in &records {
        // A broker detects records that are sent again after a lost answer; the mock cluster stores them
        // twice.
        if !seen.insert(record.n()) {
            continue;
        }
        if let Some((partition, n)) = last.insert(record.key.clone().unwrap(), (record.partition, record.n()))
        {
            assert_eq!(partition, record.partition);
            assert!(n < record.n(), "{n} before {} of {:?}", record.n(), record.key);
        }
    }
    assert_eq!(seen.len(), 1_000);
    assert_eq!(last.len(), 10);
    assert!(records.iter().map(|record| record.partition).collect::<BTreeSet<_>>().len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_broker_refuses_as_too_large_does_not_fail_its_neighbours() {
    let topic = Topic::mocked(1);
    let deliveries = deliveries(&topic.sink(""), "kafka", topic.config(), 3);
    let outlet = &deliveries.outlet;
    stored(outlet, &deliveries[..1]).await;
    // The three together, then the first one alone.
    topic.mock().request_errors(Api::Produce, &[Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
    let reports = outlet.send(&deliveries).await;
    assert_eq!(
        reasons(&reports),
        [("rejected", Some(Reason::BodyTooLarge)), ("delivered", None), ("delivered", None)],
        "{reports:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_broker_refuses_as_invalid_does_not_fail_its_neighbours() {
    let topic = Topic::mocked(1);
    // On a busy machine a millisecond of lingering may end between two of them.
    let sink = topic.sink("options = ['linger.ms=50']");
    let deliveries = deliveries(&sink, "kafka", topic.config(), 3);
    let outlet = &deliveries.outlet;
    stored(outlet, &deliveries[..1]).await;
    // The three together, then the first one alone.
    topic.mock().request_errors(Api::Produce, &[Error::RD_KAFKA_RESP_ERR_INVALID_RECORD; 2]);
    let reports = outlet.send(&deliveries).await;
    assert_eq!(
        reasons(&reports),
        [("rejected", Some(Reason::PayloadUnusable)), ("delivered", None), ("delivered", None)],
        "{reports:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_down_is_a_retry_and_the_next_attempt_works_when_it_is_back() {
    let topic = Topic::mocked(1);
    let deliveries = deliveries(&topic.sink("timeout = '1s'"), "kafka", topic.config(), 2);
    let outlet = &deliveries.outlet;
    stored(outlet, &deliveries[..1]).await;
    topic.mock().broker_down(-1).unwrap();
    let reports = outlet.send(&deliveries[1..]).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::ConnectFailed))], "{reports:#?}");
    assert!(reports[0].ambiguous, "it may have arrived before the connection broke");
    topic.mock().broker_up(-1).unwrap();
    stored(outlet, &deliveries[1..]).await;
    assert_eq!(topic.records().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_answer_is_a_timeout_in_time() {
    let topic = Topic::mocked(1);
    let deliveries = deliveries(&topic.sink("timeout = '1s'"), "kafka", topic.config(), 2);
    let outlet = &deliveries.outlet;
    stored(outlet, &deliveries[..1]).await;
    topic.mock().broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let began = Instant::now();
    let reports = outlet.send(&deliveries[1..]).await;
    assert!(began.elapsed() < outlet.deadline() - Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(reasons(&reports), [("retry", Some(Reason::Timeout))], "{reports:#?}");
    assert!(reports[0].ambiguous, "{reports:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_permission_is_access_denied_and_recovers() {
    let topic = Topic::mocked(1);
    let deliveries = deliveries(&topic.sink("timeout = '2s'"), "kafka", topic.config(), 1);
    let outlet = &deliveries.outlet;
    topic.mock().request_errors(Api::Produce, &[Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let reports = outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::AccessDenied))], "{reports:#?}");
    assert!(!reports[0].ambiguous);
    // librdkafka refreshes metadata within a second or two.
    stored(outlet, &deliveries).await;
    topic.mock().topic_error(&topic.name, Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let problem = outlet.check().await.unwrap_err();
    assert!(problem.as_str().contains("uthorization"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_with_a_fatal_error_is_replaced_by_the_next_attempt() {
    let topic = Topic::mocked(1);
    let deliveries = deliveries(&topic.sink("timeout = '2s'"), "kafka", topic.config(), 1);
    let outlet = &deliveries.outlet;
    topic
        .mock()
        .request_errors(Api::InitProducerId, &[Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED]);
    let reports = outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::AccessDenied))], "{reports:#?}");
    assert_eq!(reasons(&outlet.send(&deliveries).await), [("delivered", None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_unknown_after_other_failures_does_not_count_as_gone_at_once() {
    let topic = Topic::mocked(1);
    let sink = topic.sink(
        "timeout = '2s'\noptions = \
         ['topic.metadata.refresh.interval.ms=100', 'topic.metadata.propagation.max.ms=0']",
    );
    let mut deliveries = deliveries(&sink, "kafka", topic.config(), 1);
    deliveries[0].attempt = 7;
    let outlet = &deliveries.outlet;
    topic.mock().topic_error(&topic.name, Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let reports = outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::TargetMissing))], "{reports:#?}");
    topic.mock().topic_error(&topic.name, Error::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    stored(outlet, &deliveries).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_sink_discards_queued_records_and_ends_its_threads() {
    let topic = Topic::mocked(1);
    let sink = topic.sink("timeout = '30s'");
    let deliveries = deliveries(&sink, "kafka", topic.config(), 1);
    topic.mock().broker_down(-1).unwrap();
    let sending = tokio::time::timeout(Duration::from_millis(300), deliveries.outlet.send(&deliveries)).await;
    assert!(sending.is_err(), "there is no broker: {sending:?}");
    let began = Instant::now();
    drop(sink);
    drop(deliveries);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    topic.mock().broker_up(-1).unwrap();
    assert_eq!(topic.records().await, [], "records were discarded and threads have ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_can_be_read() {
    let topic = Topic::mocked(1);
    for compression in ["none", "gzip", "snappy", "lz4"] {
        let deliveries =
            deliveries(&topic.sink(&format!("compression = '{compression}'")), "kafka", topic.config(), 20);
        let reports = deliveries.outlet.send(&deliveries).await;
        assert!(
            reasons(&reports).iter().all(|report| *report == ("delivered", None)),
            "{compression}: {reports:#?}"
        );
    }
    assert_eq!(topic.records().await.len(), 80);
}

#[test]
fn options_that_could_break_promises_are_refused_and_values_are_checked() {
    let mistakes = |lines: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(
            &mut file,
            format!("[database]\nurl = 'postgres://a@b/c'\n[sinks.kafka]\nbrokers = ['a:1']\n{lines}")
                .as_bytes(),
        )
        .unwrap();
        let sources =
            pgoutbox::cli::config::Sources { file: Some(file.path().to_owned()), ..Default::default() };
        match Config::load(&sources, pgoutbox::sinks::CONFIGURED) {
            Err(error) => error.to_string(),
            Ok(config) => match pgoutbox::sinks::registry().open(&config.sinks) {
                Ok(()) => String::new(),
                Err(problem) => problem.to_string(),
            },
        }
    };
    assert_eq!(mistakes("options = ['linger.ms=5', 'partitioner=consistent']"), "");
    for option in [
        "acks=1",
        "enable.idempotence=false",
        "transactional.id=a",
        "retries=0",
        "plugin.library.paths=/tmp/a.so",
    ] {
        let message = mistakes(&format!("options = [{option:?}]"));
        assert!(message.contains("sinks.kafka.options") && message.contains("may not be set"), "{message}");
    }
    for partitioner in ["murmur2", "murmur2_random", "consistent_random", "fnv1a", "fnv1a_random"] {
        assert_eq!(mistakes(&format!("options = ['partitioner={partitioner}']")), "");
    }
    for (lines, expected) in [
        (
            "options = ['partitioner=random']",
            "the partitioner \"random\" is unknown or spreads records of one key",
        ),
        ("options = ['linger.ms=soon']", "linger.ms"),
        ("options = ['linger.ms']", "NAME=VALUE"),
        ("compression = 'zip'", "sinks.kafka.compression"),
        ("mechanism = 'GSSAPI'\nusername = 'a'\npassword = 'hunter2'", "sinks.kafka.mechanism"),
        ("username = 'a'", "sinks.kafka.username"),
        ("timeout = '10m'", "sinks.kafka.timeout"),
        ("brokers = ['kafka']", "sinks.kafka"),
    ] {
        let message = mistakes(lines);
        assert!(message.contains(expected) && !message.contains("hunter2"), "{lines}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_starts_without_the_cluster_serves_others_and_delivers_when_it_starts() {
    let topic = Topic::mocked(1);
    topic.mock().broker_down(-1).unwrap();
    let database = Database::new().await;
    let retry = json!({ "schedule": vec!["200ms"; 10] });
    database
        .execute(format!(
            "select outbox.subscribe('kafka', array['**'], 'kafka', '{}', retry => '{retry}')",
            topic.config()
        ))
        .await;
    database.execute("select outbox.subscribe('other', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let sinks = connections(&topic.section("timeout = '3s'"));
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).sink(recorder.clone()).connections(&sinks).unwrap()
    })
    .await;
    database
        .execute(
            "insert into outbox.events (topic, key, payload) \
             select 'shop.orders.create', 'a', jsonb_build_object('n', n) from generate_series(1, 50) as n",
        )
        .await;
    recorder.wait_for(50).await;
    database.eventually("select count(*) > 0 from outbox.attempts where reason = 'connect_failed'").await;
    topic.mock().broker_up(-1).unwrap();
    database.eventually("select count(*) = 0 from outbox.owed").await;
    let numbers: Vec<_> = topic.records().await.iter().map(Record::n).collect();
    for n in 1..=50 {
        assert!(numbers.contains(&n), "{n} is missing: {numbers:?}");
    }
    relay.stop().await;
    database.drop().await;
}

/// A producer that knew the old broker would go on looking for it for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_without_its_state_gets_one_of_the_next_attempts() {
    let mut topic = Topic::private(1).await;
    let deliveries = deliveries(&topic.sink("timeout = '2s'"), "kafka", topic.config(), 3);
    let outlet = &deliveries.outlet;
    stored(outlet, &deliveries[..1]).await;
    topic.server.as_mut().unwrap().stop();
    let down = outlet.send(&deliveries[1..2]).await;
    assert_eq!(reasons(&down), [("retry", Some(Reason::ConnectFailed))], "{down:#?}");
    topic.server.as_mut().unwrap().start_again().unwrap();
    topic.create(&topic.name, 1).await;
    let mut attempts = Vec::new();
    while attempts.last().is_none_or(|report: &Report| report.outcome != Outcome::Delivered) {
        assert!(attempts.len() < 3, "{attempts:#?}");
        attempts.extend(outlet.send(&deliveries[2..]).await);
    }
    let old = attempts.iter().find(|report| report.outcome.reason() == Some(Reason::ConnectFailed));
    assert!(old.is_none(), "it answers: {attempts:#?}");
}
