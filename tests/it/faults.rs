//! Faults in the relay's process and between it and the database: the cost of a killed, disconnected or
//! panicking relay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    lab::private_postgres::{Options, PrivatePostgres, Stop},
    relay::{Settings, telemetry::Signal},
    sink::{Outgoing, Problem, Report, Sink},
};

use crate::support::{
    Books, Crowd, Database, Habits, LedgerSink, Recorder, RelayBox, ledger::Request, pause, relay::settings,
    seed,
};

fn polling(name: &str) -> Settings {
    Settings {
        poll: Some(Duration::from_secs(1)),
        permits: 32,
        permits_per_subscription: 16,
        ..settings(name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_whose_backends_are_terminated_lose_nothing_and_repeat_nothing() {
    let seed = seed();
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe_variously(&database).await;
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        let settings = Settings { lease: Duration::from_secs(5), ..polling(name) };
        relays.push(
            RelayBox::start_with(&database, |builder| {
                builder.settings(settings).sink(LedgerSink::new(&books))
            })
            .await,
        );
    }
    let crowd = Crowd::start(
        &database,
        &books,
        seed,
        Habits { publishers: 4, rests: Duration::from_millis(60), ..Habits::default() },
    );
    let mut strikes = tokio::time::interval(Duration::from_millis(200));
    let mut struck = 0;
    for _ in 0..30 {
        strikes.tick().await;
        struck += database
            .count(
                "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity \
                 where datname = current_database() and application_name like 'pgoutbox/%' \
                     order by random() limit 1) as one",
            )
            .await;
    }
    assert!(struck >= 25, "{struck} backends terminated");
    crowd.stop().await;
    books.healed(&database).await;
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    let findings = books.balance(&database, seed).await;
    println!("{struck} backends terminated; {} pairs, {} duplicates", findings.owed, findings.duplicates());
    assert_eq!(findings.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_crash_loses_nothing_and_no_event_is_sent_that_it_lost() {
    let seed = seed();
    // The WAL writer hardly ever runs, so commits that were not flushed are lost.
    let options = Options {
        durable: true,
        settings: vec![("wal_writer_delay".to_owned(), "10s".to_owned())],
        ..Options::default()
    };
    let mut server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let books = Books::default();
    books.subscribe_variously(&database).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    let habits = Habits {
        publishers: 6,
        hurried: true,
        long: Duration::ZERO,
        prepares: false,
        patient: true,
        ..Habits::default()
    };
    let mut slowest = Duration::ZERO;
    for round in 0..4u64 {
        let before = books.requests();
        let crowd = Crowd::start(&database, &books, seed.wrapping_add(round * 100), habits);
        books.wait_for(before + 200, Duration::from_secs(15)).await;
        server = tokio::task::spawn_blocking(move || {
            if round % 2 == 0 {
                server.kill()
            } else {
                server.stop(Stop::Immediate)
            }
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
        let (accepts, before) = (Instant::now(), books.requests());
        books.wait_for(before + 1, Duration::from_secs(10)).await;
        slowest = slowest.max(accepts.elapsed());
        crowd.stop().await;
    }
    println!("first delivery at most {slowest:?} after the server accepted");
    assert!(slowest <= Duration::from_secs(3), "first delivery {slowest:?} after the server accepted");
    books.healed(&database).await;
    assert!(relay.stop().await.complete);
    let findings = books.balance(&database, seed).await;
    assert_eq!(findings.duplicates(), 0, "the only relay kept its leases");
    database.pool.close().await;
    tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_committed_asynchronously_is_not_sent_and_then_lost() {
    let options = Options {
        durable: true,
        settings: vec![("wal_writer_delay".to_owned(), "10s".to_owned())],
        ..Options::default()
    };
    let mut server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    // All commits are asynchronous, so only the relay's own commits are flushed.
    database.execute("alter database shop set synchronous_commit = off").await;
    let hurried = sqlx::PgPool::connect_lazy_with(database.options.clone());
    for round in 1..=5 {
        sqlx::query("select outbox.publish('hurried', '{\"n\": 1}')").execute(&hurried).await.unwrap();
        books.wait_for(round, Duration::from_secs(10)).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
        let sent = books.journal().requests.last().unwrap().event;
        let mut again: Vec<i64> = Vec::new();
        let began = Instant::now();
        while again.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "the server answers again");
            again = sqlx::query_scalar("select count(*) from outbox.events where id = $1")
                .bind(sent)
                .fetch_all(&hurried)
                .await
                .unwrap_or_default();
        }
        assert_eq!(again, [1], "round {round}: sent, and then lost by the server");
    }
    books.healed(&database).await;
    assert!(relay.stop().await.complete);
    books.balance(&database, 0).await;
    hurried.close().await;
    database.pool.close().await;
    tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
}

/// Panics for marked events until it is fixed.
#[derive(Debug, Clone)]
struct Panicking {
    books: Books,
    panics: Arc<AtomicUsize>,
    fixed: Arc<AtomicBool>,
}

impl Sink for Panicking {
    const KIND: &'static str = "panicking";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), delivery: &Outgoing) -> Report {
        if delivery.event.topic == "panic" && !self.fixed.load(Ordering::SeqCst) {
            self.panics.fetch_add(1, Ordering::SeqCst);
            panic!("panic of the test");
        }
        self.books.request(Request {
            event: delivery.event.id,
            subscription: delivery.subscription.to_string(),
            payload: delivery.event.payload.clone(),
            arrived: Instant::now(),
            took_effect: true,
        });
        Outcome::Delivered.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(15)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_panics_fails_an_attempt_and_nothing_else() {
    let database = Database::new().await;
    let books = Books::default();
    let sink = Panicking { books: books.clone(), panics: Arc::default(), fixed: Arc::default() };
    books.subscribe_to(&database, "fragile", &["**"], None, "panicking", serde_json::json!({})).await;
    books.subscribe(&database, "sturdy", &["**"], None).await;
    // More panics than permits: each permit is released.
    let few = Settings { permits: 2, permits_per_subscription: 1, ..polling("relay") };
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(few).sink(sink.clone()).sink(LedgerSink::new(&books))
    })
    .await;
    for _ in 0..4 {
        books.publish(&database.pool, "panic").await;
        books.publish(&database.pool, "calm").await;
    }
    books.wait_for(4 * 2 + 4, Duration::from_secs(10)).await;
    sink.fixed.store(true, Ordering::SeqCst);
    books.wait_for(4 * 2 * 2, Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    let panics = sink.panics.load(Ordering::SeqCst);
    assert!(panics >= 4, "{panics}");
    let recorded = "select count(*) from outbox.attempts \
                    where reason = 'sink_panicked' and outcome = 'retry' and not stale";
    assert_eq!(
        usize::try_from(database.count(recorded).await).unwrap(),
        panics,
        "each panic is a failed attempt"
    );
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_kills_the_relay_is_given_up_after_three_crashes_and_the_others_are_delivered() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let endless = LedgerSink { takes: Duration::from_secs(600), ..LedgerSink::new(&books) };
    let deadly = books.publish(&database.pool, "deadly").await;
    let mut sent = 0;
    for _ in 0..3 {
        let sink = endless.clone();
        let relay =
            RelayBox::start_with(&database, |builder| builder.settings(polling("relay")).sink(sink)).await;
        sent += 1;
        books.wait_for(sent, Duration::from_secs(10)).await;
        relay.abort().await;
        books.fault("death", 1);
        // End its lease.
        let returned = database
            .count(
                "with over as (update outbox.pages set due_at = now() \
                 returning 1) select count(*) from over",
            )
            .await;
        assert_eq!(returned, 1);
    }
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    relay
        .wait(|signal| {
            use pgoutbox::relay::telemetry::Signal;
            matches!(signal, Signal::Settled { event, verdict: "dead_letter", .. } if *event == Some(deadly))
        })
        .await;
    let harmless = books.publish(&database.pool, "harmless").await;
    books.wait_for(sent + 1, Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    let requests = books.journal().requests;
    assert_eq!((requests.len(), requests[3].event), (4, harmless), "the fourth relay did not attempt it");
    assert_eq!(
        database.count("select count(*) from outbox.dead_letters where reason = 'relay_killed'").await,
        1
    );
    books.balance(&database, 0).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_dropped_without_a_drain_does_nothing_more() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    relay.abort().await;
    books.publish(&database.pool, "unheard").await;
    // Longer than the poll interval.
    pause(Duration::from_millis(2_500)).await;
    assert_eq!(books.requests(), 0, "the relay had ended");
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(polling("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    books.wait_for(1, Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// While the log is locked, events of claimed deliveries cannot be read. The claims are released as if they
/// had not been made.
#[tokio::test]
async fn a_claim_whose_events_cannot_be_read_is_released_and_costs_no_attempt() {
    let database = Database::new().await;
    database.execute("select outbox.publish('past', '1')").await;
    let recorder = Recorder::new();
    let settings = Settings { poll: Some(Duration::from_millis(100)), ..settings("relay") };
    let mut relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(recorder.clone())).await;
    relay.wait_asleep().await;
    // The event is before the subscription, and routed.
    database.execute("select outbox.subscribe('late', array['past'], 'recorder')").await;
    let (position, created_at): (i64, chrono::DateTime<chrono::Utc>) =
        sqlx::query_as("select position, created_at from outbox.events")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    let mut locked = database.pool.begin().await.unwrap();
    sqlx::query("lock table outbox.events in access exclusive mode").execute(&mut *locked).await.unwrap();
    sqlx::query(
        "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
         select id, now(), $1, $2 from outbox.subscriptions",
    )
    .bind(position)
    .bind(created_at)
    .execute(&database.pool)
    .await
    .unwrap();
    relay.wait(|signal| matches!(signal, Signal::Claimed { deliveries: 1 })).await;
    relay.wait(|signal| *signal == Signal::DatabaseFailed).await;
    database
        .eventually("select lease_token is null and attempt = 0 and unfinished = 0 from outbox.deliveries")
        .await;
    locked.rollback().await.unwrap();
    let seen = recorder.wait_for(1).await;
    assert_eq!((seen[0].attempt, seen[0].payload.as_str()), (1, "1"));
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn numbers_that_are_huge_when_written_out_become_a_dead_letter_and_stop_no_other() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    // A log may have them from before they were refused.
    database.execute("alter domain outbox.payload drop constraint payload_must_be_at_most_256_kib").await;
    // 40 numbers of 131,072 digits each, in a payload of about 400 bytes.
    database
        .execute(
            "select outbox.publish('a.b', ('[' || repeat('1e131071,', \
             40) || '1]')::jsonb) from generate_series(1, 3)",
        )
        .await;
    database.execute("select outbox.publish('a.b', '1e131071')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    assert_eq!(recorder.wait_for(1).await[0].payload.len(), 131_072);
    database
        .eventually("select count(*) = 3 from outbox.dead_letters where reason = 'event_unreadable'")
        .await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// A sink with a breaker that returns its outcomes in turn.
#[derive(Debug, Default)]
struct InTurn {
    attempts: AtomicUsize,
}

impl Sink for InTurn {
    const KIND: &'static str = "in_turn";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        Some("there".to_owned())
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(5)
    }

    async fn send(&self, (): &(), _: &Outgoing) -> Report {
        match self.attempts.fetch_add(1, Ordering::SeqCst) {
            0..20 => Outcome::Retry { reason: Reason::ConnectFailed, after: None }.into(),
            20..25 => Outcome::Rejected { reason: Reason::TemplateFailed }.into(),
            25 => Outcome::Retry { reason: Reason::Refused, after: None }.into(),
            _ => Outcome::Delivered.into(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inconclusive_probes_do_not_delay_the_breaker() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('there', array['**'], 'in_turn', \
             retry => '{\"schedule\": [\"0s\", \"0s\", \"0s\", \"0s\"]}')",
        )
        .await;
    let settings = Settings { permits: 10, permits_per_subscription: 10, ..settings("relay") };
    let mut relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(InTurn::default())).await;
    database
        .execute("insert into outbox.events (topic, payload) select 'a.b', '1' from generate_series(1, 40)")
        .await;
    for open in [true, false] {
        relay.wait(|signal| matches!(signal, Signal::Breaker { open: now, .. } if *now == open)).await;
    }
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 5);
    relay.stop().await;
    database.drop().await;
}
