//! Sleeping relays: no event waits although nothing polls, and publishers do not pay for notifications.

use std::time::{Duration, Instant};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{Settings, telemetry::Signal},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::{Connection, Executor, postgres::PgListener};
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

use crate::support::{
    Books, Database, LedgerSink, Recorder, RelayBox,
    ledger::{Ended, Transaction, Written},
    pause,
    relay::settings,
    seed,
};

/// Without a poll a missed notification costs ten seconds, the interval at which due deliveries are looked
/// for anyway.
const TOO_LONG: Duration = Duration::from_secs(2);

fn without_poll(name: &str) -> Settings {
    Settings { poll: None, ..settings(name) }
}

/// Publishes one event and commits after a delay.
async fn publish_slowly(books: &Books, database: &Database, seed: u64, moments: [u64; 2]) {
    let [before, inside] = moments.map(Duration::from_micros);
    pause(before).await;
    let event = Written {
        id: Uuid::new_v4(),
        topic: "rung".to_owned(),
        organization: None,
        payload: "{\"n\": 1}".to_owned(),
    };
    let mut transaction = database.pool.begin().await.unwrap();
    sqlx::query("insert into outbox.events (id, topic, payload) values ($1, 'rung', $2::text::jsonb)")
        .bind(event.id)
        .bind(&event.payload)
        .execute(&mut *transaction)
        .await
        .unwrap();
    if !inside.is_zero() {
        pause(inside).await;
    }
    let committing = Instant::now();
    transaction.commit().await.unwrap();
    books.transaction(Transaction {
        seed,
        events: vec![event],
        synchronous: true,
        committing,
        ended: Ended::Committed,
    });
}

/// Bursts with pauses between them. Each must have arrived before the next begins, so that a later event
/// cannot hide a missed notification.
async fn bursts(relays: usize, rounds: usize) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let mut running = Vec::new();
    for number in 0..relays {
        let settings = without_poll(&format!("relay-{number}"));
        running.push(
            RelayBox::start_with(&database, |builder| {
                builder.settings(settings).sink(LedgerSink::new(&books))
            })
            .await,
        );
    }
    for relay in &mut running {
        relay.wait_asleep().await;
    }
    let mut published = 0;
    for round in 0..rounds {
        let mut writers: Vec<Vec<[u64; 2]>> = Vec::new();
        for _ in 0..rng.random_range(1..=6) {
            let mut moments = Vec::new();
            for _ in 0..rng.random_range(1..=4) {
                // Half of the transactions commit at once; during the others the relay falls asleep.
                let inside = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..20_000) };
                moments.push([rng.random_range(0..30_000), inside]);
            }
            published += moments.len();
            writers.push(moments);
        }
        let (books_of_all, place) = (&books, &database);
        let burst = writers.into_iter().map(|moments| async move {
            for one in moments {
                publish_slowly(books_of_all, place, seed, one).await;
            }
        });
        futures_util::future::join_all(burst).await;
        let committed = Instant::now();
        books.wait_for(published, TOO_LONG).await;
        assert!(committed.elapsed() < TOO_LONG, "round {round}");
        pause(Duration::from_micros(rng.random_range(0..30_000))).await;
    }
    for relay in running {
        assert!(relay.stop().await.complete);
    }
    books.balance(&database, seed).await;
    let journal = books.journal();
    let committed: std::collections::HashMap<_, _> = journal
        .transactions
        .iter()
        .flat_map(|one| one.events.iter().map(|event| (event.id, one.committing)))
        .collect();
    let mut waits: Vec<_> =
        journal.requests.iter().map(|request| request.arrived - committed[&request.event]).collect();
    waits.sort_unstable();
    eprintln!(
        "{published} events: median {:?}, p99 {:?}, longest {:?}",
        waits[published / 2],
        waits[published * 99 / 100],
        waits[published - 1]
    );
    assert_eq!(waits.len(), published);
    assert!(waits[published - 1] < TOO_LONG, "an event waited {:?}", waits[published - 1]);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_waits_although_nothing_polls() {
    bursts(1, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_waits_although_nothing_polls_and_two_relays_share_the_doorbell() {
    bursts(2, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_published_with_the_doorbell_off_is_found_by_the_poll() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let polling = Settings { poll: Some(Duration::from_millis(300)), ..settings("relay") };
    let mut relay =
        RelayBox::start_with(&database, |builder| builder.settings(polling).sink(LedgerSink::new(&books)))
            .await;
    relay.wait_asleep().await;
    let mut doorbell = PgListener::connect_with(&database.pool).await.unwrap();
    doorbell.listen("outbox_doorbell").await.unwrap();
    let mut quiet = database.connection().await;
    quiet.execute("set outbox.doorbell = 'off'").await.unwrap();
    for round in 1..=5 {
        relay.wait_asleep().await;
        quiet.execute("select outbox.publish('quiet', '{\"n\": 1}')").await.unwrap();
        books.wait_for(round, TOO_LONG).await;
    }
    // The first notification received is ours.
    database.execute("notify outbox_doorbell, 'marker'").await;
    assert_eq!(timeout(TOO_LONG, doorbell.recv()).await.unwrap().unwrap().payload(), "marker");
    drop(doorbell);
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// A transaction with an event is prepared and committed, or refused.
async fn prepare(database: &Database, doorbell: &str) -> Result<(), sqlx::Error> {
    let name = Uuid::new_v4().simple().to_string();
    let mut connection = database.connection().await;
    connection.execute("begin").await?;
    connection.execute(sqlx::AssertSqlSafe(format!("set local outbox.doorbell = '{doorbell}'"))).await?;
    connection.execute("select outbox.publish('prepared', '{\"n\": 1}')").await?;
    connection.execute(sqlx::AssertSqlSafe(format!("prepare transaction '{name}'"))).await?;
    connection.execute(sqlx::AssertSqlSafe(format!("commit prepared '{name}'"))).await?;
    connection.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_can_be_prepared_unless_it_had_to_ring() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    prepare(&database, "on").await.expect("there is no relay to wake");
    prepare(&database, "off").await.unwrap();

    // A publisher that did not notify is open, so the relay stays awake.
    let mut under_way = database.connection().await;
    under_way.execute("begin; select outbox.publish('under.way', '{\"n\": 1}')").await.unwrap();
    let polling = Settings { poll: Some(Duration::from_millis(300)), ..settings("relay") };
    let mut relay =
        RelayBox::start_with(&database, |builder| builder.settings(polling).sink(LedgerSink::new(&books)))
            .await;
    books.wait_for(2, Duration::from_secs(10)).await;
    prepare(&database, "on").await.expect("the relay is awake");
    prepare(&database, "off").await.unwrap();
    books.wait_for(4, Duration::from_secs(10)).await;

    under_way.execute("commit").await.unwrap();
    books.wait_for(5, Duration::from_secs(10)).await;
    relay.wait_asleep().await;
    let refused = prepare(&database, "on").await.expect_err("all relays sleep, so it had to notify");
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("0A000"), "{refused}");
    assert!(refused.to_string().contains("LISTEN, UNLISTEN, or NOTIFY"), "{refused}");
    prepare(&database, "off").await.unwrap();
    books.wait_for(6, TOO_LONG).await;
    assert!(relay.stop().await.complete);
    assert_eq!(books.requests(), 6, "transactions that could not be prepared were rolled back");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_cut_off_is_rebuilt_and_nothing_is_missed() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(without_poll("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    relay.wait_asleep().await;
    for round in 0..4 {
        books.publish(&database.pool, "before").await;
        let cut = database
            .count(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and application_name like 'pgoutbox/%/listener'",
            )
            .await;
        assert_eq!(cut, 1, "one listener");
        books.publish(&database.pool, "meanwhile").await;
        relay.wait(|signal| *signal == Signal::ListenerLost).await;
        books.publish(&database.pool, "deaf").await;
        relay.wait(|signal| *signal == Signal::ListenerConnected).await;
        books.wait_for(round * 4 + 3, TOO_LONG).await;
        relay.wait_asleep().await;
        books.publish(&database.pool, "after").await;
        books.wait_for(round * 4 + 4, TOO_LONG).await;
    }
    assert!(relay.stop().await.complete);
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_hardly_ever_notify_while_a_relay_is_awake() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(without_poll("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    let mut doorbell = PgListener::connect_with(&database.pool).await.unwrap();
    doorbell.listen("outbox_doorbell").await.unwrap();
    // On a busy machine a relay may fall asleep between its polls, so the best of three counts.
    let mut rings = Vec::new();
    while rings.len() < 3 && rings.iter().all(|rings| rings * 20 > 3_200) {
        let mut writers = JoinSet::new();
        for _ in 0..32 {
            let mut connection = database.connection().await;
            writers.spawn(async move {
                for _ in 0..100 {
                    connection
                        .execute("insert into outbox.events (topic, payload) values ('load', '{\"n\": 1}')")
                        .await
                        .unwrap();
                }
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
        }
        books.wait_for(3_200 * (rings.len() + 1), Duration::from_secs(30)).await;
        database.execute("notify outbox_doorbell, 'marker'").await;
        let mut heard = 0;
        while timeout(TOO_LONG, doorbell.recv()).await.unwrap().unwrap().payload() != "marker" {
            heard += 1;
        }
        rings.push(heard);
    }
    drop(doorbell);
    eprintln!("{rings:?} rings for 3200 commits each");
    // Each notification is a commit that waits for a lock on the whole database. A few come when the
    // relay just fell asleep.
    assert!(rings.iter().any(|rings| rings * 20 <= 3_200), "{rings:?} rings for 3200 commits each");
    assert!(relay.stop().await.complete);
    assert_eq!(books.requests(), 3_200 * rings.len());
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_relay_that_holds_the_doorbell_stops_another_takes_it() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    for round in 0..3 {
        let start = |name: &'static str| {
            let sink = LedgerSink::new(&books);
            RelayBox::start_with(&database, move |builder| builder.settings(without_poll(name)).sink(sink))
        };
        let mut first = start("first").await;
        first.wait_asleep().await;
        let mut second = start("second").await;
        second.wait_asleep().await;
        books.publish(&database.pool, "both").await;
        books.wait_for(round * 3 + 1, TOO_LONG).await;
        assert!(first.stop().await.complete);
        for one in 2..=3 {
            books.publish(&database.pool, "second").await;
            books.wait_for(round * 3 + one, TOO_LONG).await;
        }
        assert!(second.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_fails_while_the_relay_sleeps_is_repeated_when_it_is_due() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('slow', array['**'], 'recorder', retry => '{\"schedule\": [\"50ms\"]}')",
        )
        .await;
    let recorder = Recorder::answering(|seen| match seen.attempt {
        1 => Outcome::Retry { reason: Reason::Timeout, after: None },
        _ => Outcome::Delivered,
    });
    let answers = recorder.gate.clone().write_owned().await;
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(without_poll("relay")).sink(recorder.clone())
    })
    .await;
    database.execute("insert into outbox.events (topic, payload) values ('a.b', '1')").await;
    recorder.wait_for(1).await;
    relay.wait_asleep().await;
    relay.wait_asleep().await;
    drop(answers);
    relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "retry", .. })).await;
    let scheduled = Instant::now();
    recorder.wait_for(2).await;
    assert!(scheduled.elapsed() < TOO_LONG, "{:?}", scheduled.elapsed());
    relay.stop().await;
    database.drop().await;
}

/// Anybody who may connect can take an advisory lock.
#[tokio::test]
async fn a_login_without_rights_that_holds_the_locks_of_the_bell_silences_nobody() {
    let database = Database::new().await;
    let stranger = format!("stranger_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {stranger} login")).await;
    let mut connection = {
        use sqlx::ConnectOptions as _;
        database.options.clone().username(&stranger).connect().await.unwrap()
    };
    let (bell, attendant) = (7_411_001, 7_411_002);
    sqlx::query("select pg_advisory_lock($1)").bind(attendant).execute(&mut connection).await.unwrap();
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let build = |name: &str| {
        let (settings, recorder) = (without_poll(name), recorder.clone());
        move |builder: pgoutbox::relay::Builder| builder.settings(settings).sink(recorder)
    };
    let mut relay = RelayBox::start_with(&database, build("one")).await;
    let mut other = RelayBox::start_with(&database, build("two")).await;
    relay.wait_asleep().await;
    other.wait_asleep().await;
    // One of them attends the bell all the same, so that publishers ring.
    database
        .eventually(
            "select exists (select from pg_locks as held join pg_stat_activity as holder using (pid) \
                             where held.locktype = 'advisory' and held.objid = 7411001 \
                               and held.mode = 'ExclusiveLock' and holder.usename = 'relay_login')",
        )
        .await;
    for count in 1..=3 {
        database.execute("select outbox.publish('rung', '{}')").await;
        recorder.wait_for(count).await;
    }
    // Nor with the other lock, whether publishers then always ring or never.
    for lock in ["pg_advisory_lock", "pg_advisory_lock_shared"] {
        let take = sqlx::AssertSqlSafe(format!("select {lock}($1)"));
        // A relay lets go of it when it wakes, but takes it again if nobody waits for it by then.
        let ringing = async {
            let taking = sqlx::query(take).bind(bell).execute(&mut connection);
            tokio::pin!(taking);
            let mut rings = tokio::time::interval(Duration::from_millis(300));
            loop {
                tokio::select! {
                    taken = &mut taking => break taken.map(drop),
                    _ = rings.tick() => database.execute("select outbox.publish('rung', '{}')").await,
                }
            }
        };
        timeout(Duration::from_secs(30), ringing).await.expect("the stranger gets the lock").unwrap();
        let seen = database.count("select count(*) from outbox.events").await as usize;
        recorder.wait_for(seen).await;
        for count in 1..=3 {
            database.execute("select outbox.publish('rung', '{}')").await;
            let waited = timeout(TOO_LONG, recorder.wait_for(seen + count)).await;
            assert!(waited.is_ok(), "an event waited for the poll while a stranger held the bell: {lock}");
        }
        sqlx::query("select pg_advisory_unlock_all()").execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    assert!(relay.stop().await.complete && other.stop().await.complete);
    database.drop().await;
    let mut root =
        sqlx::PgConnection::connect(&crate::support::database::server().url("postgres")).await.unwrap();
    root.execute(sqlx::AssertSqlSafe(format!("drop role {stranger}"))).await.unwrap();
    root.close().await.unwrap();
}
