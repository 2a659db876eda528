//! Events of the log are sent again: what was asked for, marked, beside live events, whatever dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{AttemptLog, Settings},
};
use uuid::Uuid;

use crate::support::{
    Books, ChildRelay, Database, Recorder, RelayBox, Server, recorder::Seen, relay::settings,
};

/// Publishes numbers, each as the payload of an event.
pub(crate) async fn publish(database: &Database, topic: &str, from: usize, to: usize) {
    database
        .execute(format!(
            "select outbox.publish('{topic}', to_jsonb(n)) from generate_series({from}, {to}) as n"
        ))
        .await;
}

async fn now(database: &Database) -> String {
    sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&database.pool).await.unwrap()
}

/// Starts a replay and returns its id. `arguments` follow the name of the subscription.
pub(crate) async fn replay(database: &Database, arguments: &str) -> i64 {
    database.count(format!("select outbox.replay('all', {arguments})")).await
}

pub(crate) async fn ended(database: &Database, id: i64, state: &str) {
    let question = format!("select state = '{state}' from outbox.replay_status where id = {id}");
    database.eventually_within(Duration::from_secs(60), &question).await;
}

/// What a replay sent, by event id, with its payload.
pub(crate) fn replayed(seen: &[Seen], id: i64) -> BTreeMap<Uuid, String> {
    let of_replay: Vec<&Seen> = seen.iter().filter(|one| one.replay == Some(id)).collect();
    let by_event: BTreeMap<_, _> = of_replay.iter().map(|one| (one.event, one.payload.clone())).collect();
    assert_eq!(by_event.len(), of_replay.len(), "nothing is repeated while nothing dies");
    by_event
}

pub(crate) fn numbers(events: &BTreeMap<Uuid, String>) -> BTreeSet<usize> {
    events.values().map(|payload| payload.parse().unwrap()).collect()
}

pub(crate) async fn subscribed(more: &str) -> Database {
    let database = Database::new().await;
    database.execute(format!("select outbox.subscribe('all', array['a.**'], 'recorder'{more})")).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_in_a_time_is_sent_again_marked_and_nothing_else() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 10).await;
    let since = now(&database).await;
    publish(&database, "a.b", 11, 20).await;
    publish(&database, "a.c", 21, 25).await;
    publish(&database, "x.b", 26, 27).await;
    let until = now(&database).await;
    publish(&database, "a.b", 31, 40).await;
    let live = recorder.wait_for(35).await;

    let id = replay(&database, &format!("'{since}', '{until}', 'a.b'")).await;
    ended(&database, id, "done").await;
    let sent = replayed(&recorder.seen(), id);
    assert_eq!(numbers(&sent), (11..=20).collect());
    for again in recorder.seen().iter().filter(|one| one.replay == Some(id)) {
        let first = live.iter().find(|one| one.event == again.event).expect("the same id as before");
        assert_eq!((&first.topic, &first.payload, first.replay), (&again.topic, &again.payload, None));
        assert_ne!(first.occasion, again.occasion, "stored again where ids are remembered");
    }
    let status: (i64, i64, i64, i64, String) = sqlx::query_as(
        "select seen, sent, waiting, failed, progress::text from outbox.replay_status where ended_at is not null",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(status, (10, 10, 0, 0, "1.0000".to_owned()));

    // Up to now: what is published later is sent once.
    let id = replay(&database, &format!("'{since}'")).await;
    publish(&database, "a.b", 41, 60).await;
    ended(&database, id, "done").await;
    recorder.wait_until(|seen| seen.iter().filter(|one| one.replay.is_none()).count() == 55).await;
    let until_the_call: BTreeSet<usize> = (11..=25).chain(31..=40).collect();
    assert_eq!(numbers(&replayed(&recorder.seen(), id)), until_the_call);

    // One event.
    let event = live.iter().find(|one| one.payload == "33").unwrap().event;
    let id = replay(&database, &format!("null, event => '{event}'")).await;
    ended(&database, id, "done").await;
    assert_eq!(numbers(&replayed(&recorder.seen(), id)), BTreeSet::from([33]));
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_follows_the_subscription_as_it_is_now_and_a_dry_run_counts_the_same() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 700).await;
    publish(&database, "b.c", 701, 800).await;
    recorder.wait_for(700).await;
    // What it gets now it did not get then, and the other way round.
    database
        .execute(
            "select outbox.subscribe('all', array['*.b', 'b.*'], 'recorder', \
                                     filter => 'payload % 7 == 0', match => null)",
        )
        .await;
    let wanted: BTreeSet<usize> = (1..=800).filter(|n| n % 7 == 0).collect();
    let dry = database.pgoutbox(&["replay", "all", "--since", "1h", "--dry-run", "--json"]);
    assert!(dry.status.success(), "{dry:?}");
    let counted: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(counted, serde_json::json!({ "would_replay": wanted.len(), "seen": 800, "filter_errors": 0 }));
    assert_eq!(database.count("select count(*) from outbox.replays").await, 0, "a dry run starts none");

    let started = database.pgoutbox(&["replay", "all", "--since", "1h", "--wait"]);
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(started.status.success() && said.contains("is done: 114 deliveries, 0 failed"), "{said}");
    let id: i64 = String::from_utf8(started.stdout).unwrap().trim().parse().unwrap();
    assert_eq!(numbers(&replayed(&recorder.seen(), id)), wanted);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_delivery_keeps_its_marker_over_retries_until_it_is_given_up() {
    let database = subscribed(", retry => '{\"schedule\": [\"1ms\"]}'").await;
    let fails = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let failing = fails.clone();
    let recorder = Recorder::answering(move |seen| {
        if failing.load(std::sync::atomic::Ordering::Acquire) && seen.payload == "2" {
            Outcome::Retry { reason: Reason::Timeout, after: None }
        } else {
            Outcome::Delivered
        }
    });
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 3).await;
    recorder.wait_for(3).await;
    // A recorder answers after it has recorded: what was live is settled before the failures begin.
    database.eventually("select count(*) = 3 from outbox.event_status where status = 'completed'").await;
    fails.store(true, std::sync::atomic::Ordering::Release);
    let id = replay(&database, "now() - interval '1 hour'").await;
    ended(&database, id, "done").await;
    let attempts: Vec<(u32, Option<i64>)> = recorder.seen()[3..]
        .iter()
        .filter(|one| one.payload == "2")
        .map(|one| (one.attempt, one.replay))
        .collect();
    assert_eq!(attempts, [(1, Some(id)), (2, Some(id))]);
    let counts = "select (sent, waiting, failed)::text from outbox.replay_status";
    let counted: String = sqlx::query_scalar(counts).fetch_one(&database.pool).await.unwrap();
    assert_eq!(counted, "(2,0,1)");
    fails.store(false, std::sync::atomic::Ordering::Release);
    database.execute("select outbox.redrive()").await;
    let last = recorder.wait_for(8).await.pop().unwrap();
    assert_eq!((last.payload.as_str(), last.replay), ("2", None), "a redrive is no replay");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn live_events_go_before_a_replay_of_many() {
    const MANY: usize = 5_000;
    let database = subscribed(", max_in_flight => 4").await;
    let recorder = Recorder::answering(|seen| {
        if seen.replay.is_some() {
            #[expect(clippy::disallowed_methods, reason = "a receiver that takes a while")]
            std::thread::sleep(Duration::from_millis(2));
        }
        Outcome::Delivered
    });
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, MANY).await;
    recorder.wait_for(MANY).await;
    let id = replay(&database, "now() - interval '1 hour'").await;
    let mut behind = Vec::new();
    for n in 1..=20 {
        let count = MANY + n * 50;
        let before = recorder.wait_until(|seen| seen.len() >= count).await.len();
        publish(&database, "a.live", n, n).await;
        let is_it = |one: &Seen| one.topic == "a.live" && one.payload == n.to_string();
        let seen = recorder.wait_until(|seen| seen.iter().any(is_it)).await;
        behind.push(seen.iter().position(is_it).unwrap() - before);
    }
    let state: String =
        sqlx::query_scalar("select state from outbox.replays").fetch_one(&database.pool).await.unwrap();
    assert_eq!(state, "running", "the replay goes on beside them");
    behind.sort_unstable();
    println!("replayed deliveries that began before a live one: {behind:?}");
    // What begins while the event is committed and routed; two hundred and fifty-six are queued.
    assert!(behind[15] <= 40, "{behind:?}");
    let most: i64 =
        database.count("select count(*) from outbox.deliveries where replay_id is not null").await;
    assert!(most <= 256, "{most} deliveries are queued at once");
    ended(&database, id, "done").await;
    assert_eq!(numbers(&replayed(&recorder.seen(), id)).len(), MANY);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_deliveries_that_hang_leave_room_for_live_ones() {
    let database = subscribed(", max_in_flight => 4").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 50).await;
    recorder.wait_for(50).await;
    let hung = recorder.gate.write().await;
    let id = replay(&database, "now() - interval '1 hour'").await;
    // How many begin depends on the window, which answers have earned: at most four.
    recorder.wait_for(51).await;
    publish(&database, "a.live", 1, 1).await;
    let seen = recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.live")).await;
    let hanging = replayed(&seen, id).len();
    assert!((1..=3).contains(&hanging), "{hanging}: three of four may be of a replay");
    drop(hung);
    ended(&database, id, "done").await;
    assert_eq!(numbers(&replayed(&recorder.seen(), id)), (1..=50).collect());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_over_two_relays_together() {
    const RATE: usize = 100;
    const COUNT: usize = 450;
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let logged = |name: &str| Settings { attempt_log: AttemptLog::All, ..settings(name) };
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        let build = |builder: pgoutbox::relay::Builder| builder.settings(logged(name)).sink(recorder.clone());
        relays.push(RelayBox::start_with(&database, build).await);
    }
    publish(&database, "a.b", 1, COUNT).await;
    recorder.wait_for(COUNT).await;
    let all = format!("select count(*) = {COUNT} from outbox.attempts");
    database.eventually(&all).await;
    database.execute("delete from outbox.attempts").await;
    let id = replay(&database, &format!("now() - interval '1 hour', rate => '{RATE}/s'")).await;
    ended(&database, id, "done").await;
    database.eventually(&all).await;
    let took: f64 = sqlx::query_scalar(
        "select extract(epoch from max(at) - min(at))::double precision from outbox.attempts",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(replayed(&recorder.seen(), id).len(), COUNT);
    let expected = COUNT as f64 / RATE as f64;
    println!("{COUNT} at {RATE}/s took {took:.2} s");
    assert!((expected * 0.9..=expected * 1.1).contains(&took), "{took} s instead of {expected} s");
    for relay in relays {
        relay.stop().await;
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_in_the_middle_of_a_replay_loses_nothing_of_it() {
    const COUNT: usize = 1_500;
    const PERMITS: usize = 16;
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(2)).await;
    server.subscribe(&database, "all", &["a.**"]).await;
    let settings = [("PGOUTBOX__RELAY__PERMITS", "16")];
    let mut relay = ChildRelay::start(&database, "first", &settings).await;
    publish(&database, "a.b", 1, COUNT).await;
    books.wait_for(COUNT, Duration::from_secs(30)).await;
    database.eventually("select count(*) = 0 from outbox.owed").await;
    let first = books.requests();
    let id = replay(&database, "now() - interval '1 hour'").await;
    for kill in 1..=3 {
        books.wait_for(first + kill * 300, Duration::from_secs(30)).await;
        relay.kill().await;
        relay = ChildRelay::start(&database, &format!("next-{kill}"), &settings).await;
    }
    ended(&database, id, "done").await;
    let mut requests: BTreeMap<Uuid, usize> = BTreeMap::new();
    for request in &books.journal().requests[first..] {
        *requests.entry(request.event).or_default() += 1;
    }
    let copies = requests.values().sum::<usize>() - requests.len();
    println!("3 kills: {copies} copies");
    assert_eq!(requests.len(), COUNT, "each event is sent again");
    assert!(copies <= 3 * PERMITS, "{copies} copies");
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0));
    database.drop().await;
}
