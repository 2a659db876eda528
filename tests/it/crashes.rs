//! The relay dies at each step of a delivery, and another one goes on: how often the destination gets the
//! event is exactly known.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use uuid::Uuid;

use crate::support::{Books, ChildRelay, Database, Server};

/// What the event goes through before the relay dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is sent at once, and accepted.
    Plain,
    /// It waited in the backlog of a subscription that was paused.
    Backlog,
    /// The first attempt failed.
    Retried,
    /// It fails, and is given up after the first attempt.
    GivenUp,
}

/// Where the relay dies, whether the events of a key keep their order, and how many requests there are in the
/// end.
const CASES: [(&str, Way, bool, u64); 18] = [
    ("routed", Way::Plain, false, 1),
    ("sending", Way::Plain, false, 1),
    ("answered", Way::Plain, false, 2),
    ("settling", Way::Plain, false, 2),
    ("settled", Way::Plain, false, 1),
    ("claimed", Way::Backlog, false, 1),
    ("answered", Way::Backlog, false, 2),
    ("settled", Way::Backlog, false, 1),
    ("claimed", Way::Retried, false, 2),
    ("settling:2", Way::Retried, false, 3),
    ("settled:2", Way::Retried, false, 2),
    ("settling", Way::GivenUp, false, 2),
    ("settled", Way::GivenUp, false, 1),
    ("claimed", Way::Backlog, true, 1),
    ("settling", Way::Backlog, true, 2),
    // The first claim is that of the first attempt.
    ("claimed:2", Way::Retried, true, 2),
    ("settling:2", Way::Retried, true, 3),
    ("settled", Way::GivenUp, true, 1),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_dies_at_a_step_repeats_what_it_had_sent_and_not_settled_and_nothing_else() {
    let cases = stream::iter(CASES).map(|(point, way, ordered, requests)| async move {
        let seen = dies_at(point, way, ordered).await;
        (seen != requests)
            .then(|| format!("{point}, {way:?}, in order: {ordered}: {seen} requests instead of {requests}"))
    });
    let wrong: Vec<String> = cases.buffer_unordered(3).filter_map(|wrong| async { wrong }).collect().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Sends an event with a relay that dies at this point, and with another one after it. Returns how many
/// requests there were.
async fn dies_at(point: &str, way: Way, ordered: bool) -> u64 {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::ZERO).await;
    server.subscribe(&database, "all", &["**"]).await;
    let retry = if way == Way::GivenUp {
        r#"{"max_attempts": 1}"#
    } else {
        r#"{"schedule": ["5s", "5s"], "jitter": 0}"#
    };
    let ordering = if ordered { "key" } else { "none" };
    database
        .execute(format!("update outbox.subscriptions set retry = '{retry}', ordering = '{ordering}'"))
        .await;
    server.switch.set_down(matches!(way, Way::Retried | Way::GivenUp));
    let settings = [("PGOUTBOX__RELAY__LEASE", "3s"), ("TEST_CRASH_AT", point)];
    if way == Way::Backlog {
        database.execute("select outbox.pause('all')").await;
    }
    let mut dying = ChildRelay::start(&database, "dying", &settings).await;
    database.execute("select outbox.publish('order', '1', key => 'k')").await;
    match way {
        Way::Plain | Way::GivenUp => {}
        Way::Backlog => {
            database.eventually("select exists (select from outbox.backlog)").await;
            database.execute("select outbox.resume('all')").await;
        }
        Way::Retried => {
            database.eventually("select exists (select from outbox.deliveries)").await;
            server.switch.set_down(false);
        }
    }
    let ended = dying.ended(Duration::from_secs(30)).await;
    assert_eq!(ended, None, "{point}, {way:?}: it dies of a signal: {:#?}", dying.log());
    go_on(&database, settings[0]).await;
    let dead = database.count("select count(*) from outbox.dead_letters").await;
    assert_eq!(dead, i64::from(way == Way::GivenUp), "{point}, {way:?}: dead letters");
    let requests = server.switch.requests();
    database.drop().await;
    requests
}

/// Another relay does what is left.
async fn go_on(database: &Database, lease: (&str, &str)) {
    let mut next = ChildRelay::start(database, "next", &[lease]).await;
    database
        .eventually(
            "select not exists (select from outbox.owed) \
                    and (select unrouted = 0 from outbox.log_status)",
        )
        .await;
    next.signal("TERM");
    assert_eq!(next.ended(Duration::from_secs(20)).await, Some(0), "{:#?}", next.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_event_is_sent_once_although_its_relay_dies_when_it_is_routed_early() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(20)).await;
    server.subscribe(&database, "all", &["**"]).await;
    let lease = ("PGOUTBOX__RELAY__LEASE", "3s");
    let settings = [lease, ("PGOUTBOX__RELAY__PERMITS", "2"), ("TEST_CRASH_AT", "routedearly")];
    let mut dying = ChildRelay::start(&database, "dying", &settings).await;
    // More than it takes at once: the rest stays in the log.
    database.execute("select outbox.publish('order', '1') from generate_series(1, 3000)").await;
    server.wait_knocked(1).await;
    let urgent: Uuid = sqlx::query_scalar("select outbox.publish('order', '1', priority => 1)")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(dying.ended(Duration::from_secs(30)).await, None, "it dies of a signal: {:#?}", dying.log());
    assert_eq!(database.count("select count(*) from outbox.routed_early").await, 1);
    go_on(&database, lease).await;
    let requests = books.journal().requests;
    assert_eq!(requests.iter().filter(|request| request.event == urgent).count(), 1);
    let repeated = requests.len() - 3_001;
    assert!(repeated <= 2, "{repeated} repeated, and two were in flight");
    database.drop().await;
}
