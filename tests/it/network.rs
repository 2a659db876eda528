//! The network between a relay and its database: cut around COMMIT, silent, slow, closed and reset.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{Settings, telemetry::Signal},
};

use crate::support::{
    Books, Database, LedgerSink, Proxy, Recorder, RelayBox, pause,
    proxy::{End, Mode, When},
    recorder::Seen,
    relay::settings,
};

/// A database that relays reach through a proxy.
async fn behind_proxy() -> (Database, Proxy) {
    let mut database = Database::new().await;
    let proxy = Proxy::start(crate::support::database::server().port()).await;
    database.relay_options = proxy.options(&database.relay_options);
    (database, proxy)
}

fn polling(name: &str, lease: u64) -> Settings {
    Settings {
        poll: Some(Duration::from_millis(500)),
        lease: Duration::from_secs(lease),
        permits: 16,
        permits_per_subscription: 16,
        ..settings(name)
    }
}

/// Fails the first attempt at `again`, rejects `dead`, and delivers everything else.
fn by_topic(seen: &Seen) -> Outcome {
    match seen.topic.as_str() {
        "again" if seen.attempt == 1 => Outcome::Retry { reason: Reason::ServerError, after: None },
        "dead" => Outcome::Rejected { reason: Reason::ServerError },
        _ => Outcome::Delivered,
    }
}

const RETRY: &str = "retry => '{\"initial\": \"50ms\", \"multiplier\": 1, \"max_attempts\": 20}'";

/// Events with one key in one transaction.
async fn publish(database: &Database, topic: &str, key: &str, count: usize) {
    database
        .execute(format!(
            "select outbox.publish('{topic}', '{{\"n\": 1}}', key => '{key}') \
               from generate_series(1, {count})"
        ))
        .await;
}

/// The positions of a key in the order in which they were first delivered.
async fn delivered(database: &Database, recorder: &Recorder, key: &str, count: usize) -> Vec<i64> {
    let of_key: Vec<i64> =
        sqlx::query_scalar("select position from outbox.events where key = $1 order by position")
            .bind(key)
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let first = |all: &[Seen]| {
        let mut first: Vec<i64> = Vec::new();
        for one in all.iter().filter(|one| of_key.contains(&one.position)) {
            if by_topic(one) == Outcome::Delivered && !first.contains(&one.position) {
                first.push(one.position);
            }
        }
        first
    };
    first(&recorder.wait_until(|all| first(all).len() >= count).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_in_order_whose_answer_is_lost_lets_no_later_event_of_its_keys_pass() {
    let (database, proxy) = behind_proxy().await;
    database
        .execute(format!(
            "select outbox.subscribe('ordered', array['**'], 'recorder', ordering => 'key', {RETRY})"
        ))
        .await;
    let recorder = Recorder::answering(by_topic);
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay", 10)).sink(recorder.clone())
    })
    .await;
    relay.wait_asleep().await;
    let began = Instant::now();
    // What waits in the backlog; and a row, because its first attempt fails.
    for (cut, (statement, first)) in
        [("relay/claim_ordered", "plain"), ("relay/claim_keyed", "again")].into_iter().enumerate()
    {
        proxy.arm(statement, When::AfterCommit);
        publish(&database, first, statement, 3).await;
        proxy.wait_cut(cut + 1).await;
        publish(&database, "plain", statement, 3).await;
        let order = delivered(&database, &recorder, statement, 6).await;
        assert!(order.is_sorted(), "{statement}: {order:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "given back, and not when a lease has ended");
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), 12 + 3, "each once, and three failed once");
    database.drop().await;
}

/// What its own takeover does, when the answer to that is lost: the page has a token that it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_cut_off_past_its_lease_loses_nothing_of_its_page() {
    let database = Database::new().await;
    database.execute(format!("select outbox.subscribe('all', array['**'], 'recorder', {RETRY})")).await;
    // So that something of the page is in flight whatever becomes of the others.
    database
        .execute("select outbox.subscribe('hanging', array['plain'], 'recorder', '{\"hang\": true}')")
        .await;
    let recorder = Recorder::answering(by_topic);
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay", 10)).sink(recorder.clone())
    })
    .await;
    relay.wait_asleep().await;
    let closed = recorder.gate.clone().write_owned().await;
    database
        .execute(
            "select outbox.publish(topic, '{\"n\": 1}') \
               from unnest(array['again', 'plain', 'dead']) as topic",
        )
        .await;
    recorder.wait_until(|all| all.len() >= 2 && all.iter().any(|one| one.subscription == "hanging")).await;
    database
        .execute(
            "update outbox.pages set lease_token = gen_random_uuid(), due_at = now() + interval '1 minute'",
        )
        .await;
    drop(closed);
    relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "stale", .. })).await;
    database.execute("update outbox.pages set due_at = now()").await;
    let is_delivered = |all: &[Seen], topic: &str| {
        let of_all = |one: &&Seen| one.subscription == "all" && one.topic == topic;
        all.iter().filter(of_all).any(|one| by_topic(one) == Outcome::Delivered)
    };
    recorder.wait_until(|all| is_delivered(all, "again") && is_delivered(all, "plain")).await;
    database.eventually("select count(*) = 1 from outbox.dead_letters where reason <> 'relay_killed'").await;
    let owed = "select not exists (select from outbox.owed join outbox.subscriptions as one \
                                      on one.id = owed.subscription_id where one.name = 'all')";
    database.eventually(owed).await;
    relay.abort().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_around_a_commit_loses_nothing_and_repeats_nothing() {
    let (database, proxy) = behind_proxy().await;
    for (name, more) in [("all", ""), ("ordered", ", ordering => 'key'")] {
        database
            .execute(format!("select outbox.subscribe('{name}', array['**'], 'recorder'{more}, {RETRY})"))
            .await;
    }
    let recorder = Recorder::answering(by_topic);
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay", 4)).sink(recorder.clone())
    })
    .await;
    let statements = [
        "advance_cursor",
        "claim_backlog",
        "claim_deliveries",
        "claim_keyed",
        "claim_ordered",
        "settle_pages",
        "settle_parts",
        "settle_delivered",
    ];
    let (mut cuts, mut dead) = (0, 0);
    for statement in statements {
        for when in [When::BeforeCommit, When::AfterCommit] {
            proxy.arm(&format!("relay/{statement}"), when);
            if statement == "claim_backlog" {
                // What is held back while it is paused waits in the backlog.
                database.execute("select outbox.pause('all')").await;
            }
            // What is delivered at once is written by a statement of its own.
            let topics =
                if statement == "settle_pages" { &["plain"][..] } else { &["plain", "again", "dead"] };
            for topic in topics {
                publish(&database, topic, topic, 2).await;
                dead += 2 * i64::from(*topic == "dead");
            }
            if statement == "claim_backlog" {
                database.eventually("select exists (select from outbox.backlog where not is_ordered)").await;
                database.execute("select outbox.resume('all')").await;
            }
            proxy.wait_cut(cuts + 1).await;
            cuts += 1;
            let done = "select not exists (select from outbox.owed) \
                           and (select unrouted = 0 from outbox.log_status)";
            database.eventually(done).await;
        }
    }
    assert!(relay.stop().await.complete);
    let mut attempts: BTreeMap<(String, i64), Vec<Seen>> = BTreeMap::new();
    for one in recorder.seen() {
        attempts.entry((one.subscription.clone(), one.position)).or_default().push(one);
    }
    let events =
        database.count("select count(*) from outbox.events where not starts_with(topic, 'outbox.')").await;
    assert_eq!(i64::try_from(attempts.len()).unwrap(), events * 2, "every event for both subscriptions");
    for ((subscription, position), all) in attempts {
        let wanted = if all[0].topic == "again" { 2 } else { 1 };
        assert_eq!(all.len(), wanted, "{subscription} {position}: {all:#?}");
    }
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, dead * 2);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_relay_takes_over_from_one_whose_database_is_silent() {
    const PERMITS: usize = 16;
    let mut database = Database::new().await;
    let direct = database.relay_options.clone();
    let proxy = Proxy::start(crate::support::database::server().port()).await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let slow = LedgerSink { takes: Duration::from_millis(300), ..LedgerSink::new(&books) };
    database.relay_options = proxy.options(&direct);
    let cut_off =
        RelayBox::start_with(&database, |builder| builder.settings(polling("cut-off", 2)).sink(slow.clone()))
            .await;
    for _ in 0..PERMITS {
        books.publish(&database.pool, "before").await;
    }
    books.wait_for(4, Duration::from_secs(10)).await;
    proxy.set(&Mode::Blackhole);
    books.fault("blackhole", PERMITS);
    database.relay_options = direct;
    let other =
        RelayBox::start_with(&database, |builder| builder.settings(polling("other", 2)).sink(slow)).await;
    let began = Instant::now();
    for _ in 0..PERMITS {
        books.publish(&database.pool, "meanwhile").await;
    }
    books.healed(&database).await;
    assert!(began.elapsed() < Duration::from_secs(10), "taken over after {:?}", began.elapsed());
    proxy.set(&Mode::Forward);
    for _ in 0..PERMITS {
        books.publish(&database.pool, "afterwards").await;
    }
    books.healed(&database).await;
    assert!(other.stop().await.complete);
    // The one that was cut off works again: alone.
    books.publish(&database.pool, "alone").await;
    books.healed(&database).await;
    assert!(cut_off.stop().await.complete);
    books.balance(&database, 0).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doorbell_that_dies_costs_the_poll_and_is_replaced() {
    let (database, proxy) = behind_proxy().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let mut relay = RelayBox::start_with(&database, |builder| {
        let settings = Settings { poll: Some(Duration::from_secs(1)), ..polling("relay", 10) };
        builder.settings(settings).sink(LedgerSink::new(&books))
    })
    .await;
    relay.wait_asleep().await;
    proxy.set_listeners(Mode::Blackhole);
    for round in 1..=3 {
        let began = Instant::now();
        books.publish(&database.pool, "silent").await;
        books.wait_for(round, Duration::from_secs(5)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    proxy.set_listeners(Mode::Forward);
    relay.signals();
    proxy.end(End::Reset, true);
    relay.wait(|signal| *signal == Signal::ListenerLost).await;
    relay.wait(|signal| *signal == Signal::ListenerConnected).await;
    books.publish(&database.pool, "rung").await;
    books.wait_for(4, Duration::from_secs(5)).await;
    proxy.end(End::Fin, false);
    books.publish(&database.pool, "closed").await;
    books.wait_for(5, Duration::from_secs(5)).await;
    assert!(relay.stop().await.complete);
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_at_rest_polls_again_soon_after_its_doorbell_has_died() {
    let (database, proxy) = behind_proxy().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let mut relay = RelayBox::start_with(&database, |builder| {
        let poll = Some(Duration::from_secs(1));
        let settings = Settings { poll, lease: Duration::from_secs(2), ..polling("relay", 10) };
        builder.settings(settings).sink(LedgerSink::new(&books))
    })
    .await;
    books.publish(&database.pool, "heard").await;
    books.wait_for(1, Duration::from_secs(5)).await;
    relay.wait_asleep().await;
    // It rests when nothing has happened for five seconds, and then looks twice a minute.
    let rested = Instant::now() + Duration::from_secs(8);
    tokio::time::sleep_until(rested.into()).await;
    proxy.set_listeners(Mode::Blackhole);
    let began = Instant::now();
    books.publish(&database.pool, "silent").await;
    books.wait_for(2, Duration::from_secs(30)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_costs_no_lease_and_repeats_nothing() {
    let (database, proxy) = behind_proxy().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay", 5)).sink(LedgerSink::new(&books))
    })
    .await;
    proxy.set(&Mode::Delay(Duration::from_millis(20)..Duration::from_millis(60)));
    let (began, mut published) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(6) {
        books.publish(&database.pool, "slow").await;
        published += 1;
        pause(Duration::from_millis(50)).await;
    }
    books.wait_for(published, Duration::from_secs(20)).await;
    proxy.set(&Mode::Forward);
    books.healed(&database).await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.attempts where stale").await, 0);
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.drop().await;
}
