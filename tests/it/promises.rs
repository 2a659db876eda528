//! Nothing is lost, sent before its commit, sent twice, or sent to another tenant.

use std::time::Duration;

use pgoutbox::relay::Settings;

use crate::support::{Books, Crowd, Database, Habits, LedgerSink, RelayBox, pause, relay::settings, seed};

/// Permits much fewer than the events committed at once.
fn few_permits(name: &str) -> Settings {
    Settings {
        permits: 24,
        permits_per_subscription: 9,
        poll: Some(Duration::from_secs(1)),
        ..settings(name)
    }
}

/// Publishers run for a while with this many relays; then the ledger must have no findings.
async fn history(relays: usize, length: Duration) {
    let seed = seed();
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe_variously(&database).await;
    let mut running = Vec::new();
    for number in 0..relays {
        let sink = LedgerSink { takes: Duration::from_millis(1), ..LedgerSink::new(&books) };
        running.push(
            RelayBox::start_with(&database, |builder| {
                builder.settings(few_permits(&format!("relay-{number}"))).sink(sink)
            })
            .await,
        );
    }
    let crowd = Crowd::start(&database, &books, seed, Habits { publishers: 10, ..Habits::default() });
    pause(length).await;
    crowd.stop().await;
    books.healed(&database).await;
    for relay in running {
        assert!(relay.stop().await.complete);
    }
    let findings = books.balance(&database, seed).await;
    assert!(findings.durable > 500 && findings.owed > 1_000, "too little happened: {findings:?}");
    assert_eq!(findings.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_transactions_do_one_relay_sends_what_was_committed_once_and_nothing_else() {
    history(1, Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_relays_together_send_what_was_committed_once_and_nothing_else() {
    history(3, Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_transaction_that_stays_open_is_sent_when_it_commits_and_delays_no_other() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(few_permits("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    let mut long = database.pool.begin().await.unwrap();
    let late: uuid::Uuid = sqlx::query_scalar("select outbox.publish('late', '{\"n\": 0}')")
        .fetch_one(&mut *long)
        .await
        .unwrap();
    let mut gone = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('gone', '{\"n\": 0}')").execute(&mut *gone).await.unwrap();
    // Several windows are processed while it is open, and positions are skipped.
    for round in 1..=10 {
        for _ in 0..30 {
            books.publish(&database.pool, "early").await;
        }
        books.wait_for(round * 30, Duration::from_secs(10)).await;
        if round == 5 {
            sqlx::query("rollback").execute(&mut *gone).await.unwrap();
        }
    }
    assert!(books.journal().requests.iter().all(|request| request.event != late), "sent before its commit");
    long.commit().await.unwrap();
    books.wait_for(301, Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    let requests = books.journal().requests;
    assert_eq!(requests.iter().filter(|request| request.event == late).count(), 1);
    assert_eq!(requests.len(), 301);
    books.balance(&database, 0).await;
    drop(gone);
    database.drop().await;
}

/// The newest transaction is above a snapshot in which no newer one has ended, not among its running
/// transactions. Its positions may be below the snapshot's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_events_of_the_newest_transaction_are_in_the_window_that_it_opens() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(few_permits("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    let mut sent = 0;
    for round in 1..=15 {
        relay.wait_asleep().await;
        let mut small = database.pool.begin().await.unwrap();
        sqlx::query("select outbox.publish('small', '{\"n\": 1}')").execute(&mut *small).await.unwrap();
        let mut large = database.pool.begin().await.unwrap();
        let bulk = "insert into outbox.events (topic, payload) \
                    select 'large', jsonb_build_object('n', n) from generate_series(1, $1) as n";
        sqlx::query(bulk).bind(20 * round).execute(&mut *large).await.unwrap();
        small.commit().await.unwrap();
        books.wait_for(sent + 1, Duration::from_secs(10)).await;
        sqlx::query(bulk).bind(300).execute(&mut *large).await.unwrap();
        large.commit().await.unwrap();
        sent += 1 + 20 * usize::try_from(round).unwrap() + 300;
        books.wait_for(sent, Duration::from_secs(5)).await;
    }
    assert!(relay.stop().await.complete);
    assert_eq!(books.requests(), sent);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_one_transaction_far_larger_than_the_permits_is_sent_once_by_two_relays() {
    let database = Database::new().await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    books.subscribe(&database, "some", &["bulk.1*"], None).await;
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        relays.push(
            RelayBox::start_with(&database, |builder| {
                builder.settings(few_permits(name)).sink(LedgerSink::new(&books))
            })
            .await,
        );
    }
    database
        .execute(
            "insert into outbox.events (topic, payload) select 'bulk.' || n, jsonb_build_object('n', n) from generate_series(1, 3000) as n",
        )
        .await;
    let some = (1..=3_000).filter(|n| n.to_string().starts_with('1')).count();
    books.wait_for(3_000 + some, Duration::from_secs(30)).await;
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    let findings = books.balance(&database, 0).await;
    assert_eq!((books.requests(), findings.duplicates()), (3_000 + some, 0));
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_one_organization_never_reaches_the_subscription_of_another() {
    let database = Database::new().await;
    let books = Books::default();
    for name in ["acme", "globex"] {
        books.subscribe(&database, name, &["**", "shop.*", "shop.order"], Some(name)).await;
    }
    books.subscribe(&database, "everybody", &["**"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(few_permits("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    for organization in ["'acme'", "'globex'", "'acme '", "'ACME'", "'acme,globex'", "'%'", "'*'", "null"] {
        for _ in 0..3 {
            database
                .execute(format!(
                    "select outbox.publish('shop.order', '{{\"n\": 1}}', organization => {organization})"
                ))
                .await;
        }
    }
    // The marker event is the last for each subscription.
    for name in ["acme", "globex"] {
        database
            .execute(format!("select outbox.publish('last', '{{\"n\": 1}}', organization => '{name}')"))
            .await;
    }
    books.wait_for((3 + 1) * 2 + (8 * 3 + 2), Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    let requests = books.journal().requests;
    for name in ["acme", "globex"] {
        assert_eq!(requests.iter().filter(|request| request.subscription == name).count(), 4, "{name}");
    }
    books.balance(&database, 0).await; // an event of another tenant would be a phantom
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_published_with_its_subscription_or_after_it_reaches_it() {
    let database = Database::new().await;
    let books = Books::default();
    // Other events keep the relay reading while subscriptions are created.
    books.subscribe(&database, "all", &["noise"], None).await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(few_permits("relay")).sink(LedgerSink::new(&books))
    })
    .await;
    let mut expected = 0;
    for round in 0..40 {
        let topic = format!("round.{round}");
        let subscribe = format!("select outbox.subscribe('round-{round}', array['{topic}'], 'ledger')");
        let publish = format!("select outbox.publish('{topic}', '{{\"n\": {round}}}')");
        books.publish(&database.pool, "noise").await;
        if round % 2 == 0 {
            // The event is written first; only the commit matters.
            let mut transaction = database.pool.begin().await.unwrap();
            for sql in [&publish, &subscribe] {
                sqlx::query(sqlx::AssertSqlSafe(sql.clone())).execute(&mut *transaction).await.unwrap();
            }
            transaction.commit().await.unwrap();
        } else {
            database.execute(subscribe).await;
            database.execute(publish).await;
        }
        books.publish(&database.pool, "noise").await;
        expected += 3;
    }
    books.wait_for(expected, Duration::from_secs(10)).await;
    assert!(relay.stop().await.complete);
    let requests = books.journal().requests;
    for round in 0..40 {
        assert_eq!(
            requests.iter().filter(|request| request.subscription == format!("round-{round}")).count(),
            1,
            "round {round}"
        );
    }
    database.drop().await;
}
