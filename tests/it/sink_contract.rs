//! One suite for every sink: what a destination must get and a sink must report. The list of sinks is at the
//! end.

use std::time::Duration;

use pgoutbox::{
    Layer, Next,
    delivery::{Outcome, Reason, ReplayId},
    sink::{Outgoing, Outlet, Registry, Report},
};
use serde_json::Value;

use crate::support::{
    Database, RelayBox,
    deliveries::{connections, deliveries, deliveries_of, payload_that_must_not_be_parsed, registry},
    relay::settings,
};

/// A real destination and its sink.
pub(crate) trait Destination: Sized {
    /// Kind of the sink.
    const KIND: &'static str;
    /// Whether payloads arrive byte for byte; false if the destination stores jsonb.
    const BYTE_FOR_BYTE: bool = true;

    /// Starts the destination, or uses the shared one, with a separate place for the test.
    async fn start() -> Self;
    /// The section of a configuration file that connects the sink to the destination.
    fn section(&self) -> String;
    /// The sink, connected to the destination.
    fn registry(&self) -> Registry {
        registry(&self.section())
    }
    /// The sink with an address where nothing listens, if the kind has addresses.
    fn nowhere() -> Option<Registry>;
    /// A subscription's config with the test's place.
    fn config(&self) -> Value;
    /// Id and payload of all arrived events, in the order of arrival, read independently of the sink.
    async fn received(&self) -> Vec<(String, String)>;
    /// The header `pgoutbox-replay` of all arrived events, in the order of arrival, read once.
    async fn markers(&self) -> Vec<Option<String>>;
    /// Configs that are refused, and a part of the message.
    fn refused() -> Vec<(Value, &'static str)>;
}

/// Makes one attempt, which must end by itself.
async fn send(outlet: &Outlet, deliveries: &[Outgoing]) -> Vec<Report> {
    let limit = outlet.deadline() + Duration::from_millis(500);
    tokio::time::timeout(limit, outlet.send(deliveries))
        .await
        .expect("a sink ends its attempt within its deadline")
}

fn assert_delivered(reports: &[Report]) {
    assert!(reports.iter().all(|report| report.outcome == Outcome::Delivered), "{reports:#?}");
}

pub(crate) async fn it_delivers_with_id_and_payload<D: Destination>() {
    let destination = D::start().await;
    let deliveries = deliveries(&destination.registry(), D::KIND, destination.config(), 1);
    assert_delivered(&send(&deliveries.outlet, &deliveries).await);
    let received = destination.received().await;
    assert_eq!(received, [(deliveries[0].event.id.to_string(), deliveries[0].event.payload.clone())]);
}

pub(crate) async fn a_batch_arrives_in_order_with_a_report_for_each<D: Destination>() {
    let destination = D::start().await;
    let deliveries = deliveries(&destination.registry(), D::KIND, destination.config(), 100);
    if let Some(batch) = deliveries.outlet.batch() {
        for part in deliveries.chunks(batch.max) {
            let reports = send(&deliveries.outlet, part).await;
            assert_eq!(reports.len(), part.len());
            assert_delivered(&reports);
        }
    } else {
        for one in &deliveries {
            assert_delivered(&send(&deliveries.outlet, std::slice::from_ref(one)).await);
        }
    }
    let received: Vec<_> = destination.received().await.into_iter().map(|(id, _)| id).collect();
    let sent: Vec<_> = deliveries.iter().map(|delivery| delivery.event.id.to_string()).collect();
    assert_eq!(received, sent);
}

pub(crate) async fn the_same_delivery_twice_is_accepted<D: Destination>() {
    let destination = D::start().await;
    let deliveries = deliveries(&destination.registry(), D::KIND, destination.config(), 2);
    assert_delivered(&send(&deliveries.outlet, &deliveries[..1]).await);
    assert_delivered(&send(&deliveries.outlet, &deliveries).await);
    let received = destination.received().await;
    assert!(received.iter().any(|(id, _)| *id == deliveries[1].event.id.to_string()), "{received:?}");
}

pub(crate) async fn a_payload_passes_byte_for_byte<D: Destination>() {
    let destination = D::start().await;
    if !D::BYTE_FOR_BYTE {
        return;
    }
    let payload = payload_that_must_not_be_parsed();
    let deliveries =
        deliveries_of(&destination.registry(), D::KIND, destination.config(), std::slice::from_ref(&payload));
    assert_delivered(&send(&deliveries.outlet, &deliveries).await);
    assert_eq!(destination.received().await[0].1, payload);
}

pub(crate) async fn a_replayed_event_is_marked_and_no_other<D: Destination>() {
    let destination = D::start().await;
    let mut deliveries = deliveries(&destination.registry(), D::KIND, destination.config(), 2);
    deliveries.outgoing[0].replay = Some(ReplayId(47));
    for one in &deliveries.outgoing {
        assert_delivered(&send(&deliveries.outlet, std::slice::from_ref(one)).await);
    }
    assert_eq!(destination.markers().await, [Some("47".to_owned()), None]);
}

/// Lets the first attempt of every fifth event fail before it reaches the sink.
struct EveryFifthFailsOnce;

impl Layer for EveryFifthFailsOnce {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        let refuse = |one: &Outgoing| {
            let fails = one.attempt == 1 && number(&one.event.payload) % 5 == 0;
            fails.then(|| Outcome::Retry { reason: Reason::HandlerFailed, after: None }.into())
        };
        next.send_unless(deliveries, refuse).await
    }
}

/// The `n` of a payload.
fn number(payload: &str) -> i64 {
    serde_json::from_str::<Value>(payload).unwrap()["n"].as_i64().unwrap()
}

pub(crate) async fn the_events_of_each_key_arrive_in_order<D: Destination>() {
    let (database, destination) = (Database::new().await, D::start().await);
    let subscribe = "select outbox.subscribe('all', array['**'], $1, $2, ordering => 'key', \
                                             retry => '{\"schedule\": [\"20ms\"]}')";
    sqlx::query(subscribe).bind(D::KIND).bind(destination.config()).execute(&database.pool).await.unwrap();
    let relay = RelayBox::start_with(&database, |builder| {
        let builder = builder.settings(settings("relay")).layer(EveryFifthFailsOnce);
        builder.connections(&connections(&destination.section())).unwrap()
    })
    .await;
    database
        .execute(
            "insert into outbox.events (topic, key, payload) \
             select 'shop.orders.change', 'order-' || n % 7, jsonb_build_object('n', n) \
               from generate_series(1, 300) as n",
        )
        .await;
    let settled = "select not exists (select from outbox.owed) and not exists (select from outbox.log_status \
                    where unrouted > 0)";
    database.eventually(settled).await;
    assert!(relay.stop().await.complete);
    let mut last = std::collections::BTreeMap::new();
    let received = destination.received().await;
    assert_eq!(received.len(), 300);
    for (_, payload) in received {
        let n = number(&payload);
        let before = last.insert(n % 7, n).unwrap_or_default();
        assert!(before < n, "{n} after {before}");
    }
    database.drop().await;
}

pub(crate) async fn an_unreachable_destination_is_a_retry_in_time<D: Destination>() {
    let Some(registry) = D::nowhere() else { return };
    let config = D::start().await.config();
    let deliveries = deliveries(&registry, D::KIND, config, 3);
    let reports = send(&deliveries.outlet, &deliveries).await;
    assert_eq!(reports.len(), 3);
    for report in &reports {
        assert!(matches!(report.outcome, Outcome::Retry { after: None, .. }), "{report:?}");
        assert!(
            report.answer.as_ref().is_some_and(|answer| !answer.is_empty()),
            "an operator must see why: {report:?}"
        );
        let shown = format!("{report:?}");
        assert!(
            !shown.contains("secret-in-the-payload") && !shown.contains("secret-of-the-connection"),
            "{shown}"
        );
    }
    assert!(deliveries.outlet.check().await.is_err());
}

pub(crate) async fn check_passes_and_leaves_nothing<D: Destination>() {
    let destination = D::start().await;
    let deliveries = deliveries(&destination.registry(), D::KIND, destination.config(), 1);
    assert_eq!(deliveries.outlet.check().await, Ok(()));
    assert_eq!(destination.received().await, []);
}

pub(crate) async fn a_bad_config_is_refused_and_names_the_field<D: Destination>() {
    let registry = D::start().await.registry();
    let mut refused = D::refused();
    refused.push((serde_json::json!({ "colour": "blue" }), "colour"));
    for (config, expected) in refused {
        let problem = registry.bind(D::KIND, &config).expect_err(&config.to_string());
        assert!(problem.as_str().starts_with("config"), "{config}: {problem}");
        assert!(problem.as_str().contains(expected), "{config}: {problem}");
    }
}

#[test]
fn a_kind_that_was_not_built_in_is_refused_with_a_fix() {
    let built = [("nats", cfg!(feature = "nats")), ("redis", cfg!(feature = "redis"))];
    for (kind, built) in built {
        let problem = pgoutbox::sinks::registry().bind(kind, &Value::Null).unwrap_err();
        let expected = if built {
            format!("must configure [sinks.{kind}]")
        } else {
            format!("was built without {kind}")
        };
        assert!(problem.as_str().starts_with("sink: ") && problem.as_str().contains(&expected), "{problem}");
    }
}

macro_rules! contract {
    ($($(#[$attribute:meta])? $name:ident: $destination:ty,)*) => { $($(#[$attribute])? mod $name {
        contract!(@ $destination:
            it_delivers_with_id_and_payload
            a_batch_arrives_in_order_with_a_report_for_each
            the_same_delivery_twice_is_accepted
            a_payload_passes_byte_for_byte
            a_replayed_event_is_marked_and_no_other
            the_events_of_each_key_arrive_in_order
            an_unreachable_destination_is_a_retry_in_time
            check_passes_and_leaves_nothing
            a_bad_config_is_refused_and_names_the_field
        );
    })* };
    (@ $destination:ty: $($promise:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            super::$promise::<$destination>().await;
        }
    )* };
}

contract! {
    postgres: crate::sinks::postgres::Inbox,
    #[cfg(feature = "amqp")]
    amqp: crate::sinks::amqp::Queue,
    file: crate::sinks::file::Files,
    #[cfg(feature = "nats")]
    nats: crate::sinks::nats::Nats,
    #[cfg(feature = "kafka")]
    kafka: crate::sinks::kafka::Topic,
    #[cfg(feature = "redis")]
    redis: crate::sinks::redis::Redis,
}
