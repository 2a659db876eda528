//! The nats sink with a server that is stopped, frozen, killed or not started.

use pgoutbox::delivery::{Outcome, Reason};

use super::nats::{Nats, events, reason};
use crate::{
    sink_contract::Destination,
    support::{
        Database, Recorder, RelayBox,
        deliveries::{connections, deliveries},
        relay::settings,
        server::eventually,
    },
};

#[tokio::test]
async fn the_next_attempt_reaches_a_server_that_was_down_without_a_restart_of_the_relay() {
    let mut nats = Nats::start().await;
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 3);
    let outlet = &deliveries.outlet;
    assert_eq!(outlet.send(&deliveries[..1]).await[0].outcome, Outcome::Delivered);
    nats.server.stop();
    let report = outlet.send(&deliveries[1..2]).await.remove(0);
    assert_eq!(report.outcome.code(), "retry", "{report:?}");
    nats.server.start_again().unwrap();
    assert_eq!(outlet.send(&deliveries[2..]).await[0].outcome, Outcome::Delivered);
    let ids: Vec<_> = nats.received().await.into_iter().map(|(id, _)| id).collect();
    if !report.ambiguous {
        assert_eq!(
            ids,
            [&deliveries[0], &deliveries[2]].map(|delivery| delivery.event.id.to_string()),
            "failed messages were not sent later"
        );
    }
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_and_messages_it_gets_later_were_ambiguous() {
    let mut nats = Nats::start().await;
    nats.more = "timeout = '300ms'".to_owned();
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 3);
    let outlet = &deliveries.outlet;
    outlet.send(&deliveries[..1]).await;
    nats.server.freeze();
    let reports = tokio::time::timeout(outlet.deadline(), outlet.send(&deliveries[1..])).await.unwrap();
    assert_eq!(reason(&reports[1]), (Some(Reason::Timeout), true), "{reports:?}");
    nats.server.thaw();
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome, Outcome::Delivered);
    assert_eq!(nats.received().await.len(), 3, "its ids keep them single");
}

#[tokio::test]
async fn a_server_killed_while_we_wait_is_noticed_at_once() {
    let mut nats = Nats::start().await;
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 2);
    let outlet = deliveries.outlet.clone();
    outlet.send(&deliveries[..1]).await;
    nats.server.freeze();
    let began = std::time::Instant::now();
    let killing = async {
        tokio::task::yield_now().await;
        nats.server.kill();
    };
    let (reports, ()) = tokio::join!(outlet.send(&deliveries[1..]), killing);
    assert_eq!(reason(&reports[0]), (Some(Reason::BrokenAnswer), true), "{reports:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "long before the timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_at_the_start_delays_no_other_and_gets_everything_when_it_starts() {
    let (database, recorder, mut nats) = (Database::new().await, Recorder::new(), Nats::start().await);
    nats.server.stop();
    database
        .execute(
            "select outbox.subscribe('far', array['**'], 'nats', config => '{\"subject\": \"events.all\"}', \
             retry => '{\"initial\": \"100ms\", \"max\": \"500ms\", \"max_attempts\": 100}')",
        )
        .await;
    database.execute("select outbox.subscribe('near', array['**'], 'recorder')").await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder
            .settings(settings("relay"))
            .sink(recorder.clone())
            .connections(&connections(&nats.section()))
            .unwrap()
    })
    .await;
    database
        .execute(
            "select outbox.publish('shop.orders.create', jsonb_build_object('n', n)) \
             from generate_series(1, 300) as n",
        )
        .await;
    recorder.wait_for(300).await;
    eventually("only deliveries to nats are left", async || {
        database.count("select count(*) from outbox.owed").await == 300
    })
    .await;
    nats.server.start_again().unwrap();
    eventually("everything is settled", async || {
        database.count("select count(*) from outbox.owed").await == 0
    })
    .await;
    assert_eq!(nats.received().await.len(), 300);
    relay.stop().await;
}

#[tokio::test]
async fn a_server_that_takes_no_more_connections_is_waited_for() {
    let nats = Nats::with("jetstream: enabled\nmax_connections: 1", None);
    nats.stream(events()).await;
    let deliveries = deliveries(&nats.registry(), "nats", nats.config(), 1);
    let outlet = &deliveries.outlet;
    // The connection that made the stream goes a little later.
    let other = std::cell::OnceCell::new();
    eventually("another has the only connection", async || {
        let made = async_nats::connect(format!("127.0.0.1:{}", nats.server.port())).await;
        made.is_ok_and(|made| other.set(made).is_ok())
    })
    .await;
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(reason(&report), (Some(Reason::NoResources), false), "{report:?}");
    drop(other);
    eventually("there is room again", async || {
        outlet.send(&deliveries).await[0].outcome == Outcome::Delivered
    })
    .await;
}
