//! A copy of an outbox sends nothing before it is adopted, and then exactly what it should.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
    time::Duration,
};

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres},
    relay::{Builder, Settings, telemetry::Signal},
};
use sqlx::Executor as _;

use crate::support::{Database, Recorder, RelayBox, database::server, relay::settings};

/// Events in the log before the copy is made.
const BEFORE: usize = 6_000;

/// Publishes events, each in a transaction with those of the same call.
async fn publish(database: &Database, count: usize) {
    database
        .execute(format!(
            "insert into outbox.events (topic, payload) \
             select 'shop.orders.create', '{{}}' from generate_series(1, {count})"
        ))
        .await;
}

/// How many events each subscription was sent. Asserts that none was sent one twice.
fn counts(recorder: &Recorder) -> HashMap<String, usize> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut seen: Vec<(String, i64)> =
        recorder.seen().into_iter().map(|one| (one.subscription, one.position)).collect();
    seen.sort();
    let twice: Vec<_> = seen.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert!(twice.is_empty(), "{} events were sent twice, such as {:?}", twice.len(), twice[0]);
    for (subscription, _) in seen {
        *counts.entry(subscription).or_default() += 1;
    }
    counts
}

/// An outbox in the middle of its work: `all` was sent all that is routed; `past` is paused, has a backlog of
/// past and of new events, and its backfill is not done; 200 events are not routed.
async fn busy() -> Database {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    // So that transaction ids of a new cluster are lower.
    database
        .execute("do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$")
        .await;
    publish(&database, BEFORE).await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    recorder.wait_for(BEFORE).await;
    database
        .execute(
            "select outbox.subscribe('past', array['**'], 'recorder', start => 'beginning'); \
             select outbox.pause('past')",
        )
        .await;
    database.eventually("select position >= 5000 from outbox.starts").await;
    publish(&database, 500).await;
    recorder.wait_for(BEFORE + 500).await;
    assert!(relay.stop().await.complete);
    publish(&database, 150).await;
    publish(&database, 50).await;
    database
}

/// What `past` and `all` are owed in a copy of [`busy`].
const ALL: usize = 200;
const PAST: usize = BEFORE + 500 + 200;

pub(crate) fn restore(from: &Database, to: &str) {
    let mut dump = Command::new(server().programs().join("pg_dump"))
        .arg(from.plain_url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let psql = Command::new(server().programs().join("psql"))
        .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", to])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(psql.status.success() && dump.wait().unwrap().success(), "{psql:?}");
}

/// Starts a relay in a copy, and waits until it is fenced.
async fn fenced(copy: &Database, recorder: &Recorder) -> RelayBox {
    fenced_with(copy, recorder, settings("relay")).await
}

async fn fenced_with(copy: &Database, recorder: &Recorder, settings: Settings) -> RelayBox {
    let build = |builder: Builder| builder.settings(settings).sink(recorder.clone());
    RelayBox::start_until(copy, build, |signal| *signal == Signal::Fenced).await
}

fn adopt(copy: &Database, how: &str) -> String {
    let output = copy.pgoutbox(&["adopt", how]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Publishes into a fenced copy, adopts it, and returns what each subscription is sent.
async fn adopted(copy: &Database, how: &str) -> (String, HashMap<String, usize>) {
    let recorder = Recorder::new();
    let mut relay = fenced(copy, &recorder).await;
    publish(copy, 30).await;
    let status = String::from_utf8(copy.pgoutbox(&["status"]).stderr).unwrap();
    assert!(status.contains("fenced: the outbox ") && status.contains("adopt --keep-pending"), "{status}");
    let check = copy.pgoutbox(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(String::from_utf8(check.stdout).unwrap().contains("database: the outbox "));
    assert_eq!(recorder.seen(), []);
    let said = adopt(copy, how);
    relay.wait(|signal| *signal == Signal::Started).await;
    copy.execute("select outbox.resume('past')").await;
    publish(copy, 20).await;
    copy.eventually(
        "select not exists (select from outbox.owed) and not exists (select from outbox.starts) \
            and (select bool_and(status = 'completed') from outbox.event_status)",
    )
    .await;
    assert!(relay.stop().await.complete);
    assert_eq!(
        copy.pgoutbox(&["adopt", "--keep-pending"]).status.code(),
        Some(1),
        "there is nothing to adopt"
    );
    (said, counts(&recorder))
}

fn sent(all: usize, past: usize) -> HashMap<String, usize> {
    HashMap::from([("all".to_owned(), all), ("past".to_owned(), past)])
}

#[tokio::test]
async fn a_dump_restored_beside_the_original_sends_what_was_not_delivered_once_it_is_adopted() {
    let original = busy().await;
    let copy = Database::empty().await;
    restore(&original, &copy.plain_url());
    let (said, counts) = adopted(&copy, "--keep-pending").await;
    assert_eq!(counts, sent(ALL + 50, PAST + 50));
    assert!(said.starts_with("adopted for the environment default: 230 events not routed and "), "{said}");
    // The original goes on.
    let recorder = Recorder::new();
    let relay = RelayBox::start(&original, &recorder).await;
    recorder.wait_for(ALL).await;
    assert!(relay.stop().await.complete);
    copy.drop().await;
    original.drop().await;
}

#[tokio::test]
async fn a_copy_whose_pending_events_are_discarded_sends_only_what_is_new() {
    let original = busy().await;
    let copy = Database::empty().await;
    restore(&original, &copy.plain_url());
    let (_, counts) = adopted(&copy, "--discard-pending").await;
    assert_eq!(counts, sent(20, 20));
    copy.drop().await;
    original.drop().await;
}

/// Transaction ids of the dump are those of another cluster, and higher than those of this one.
#[tokio::test]
async fn a_dump_restored_in_a_younger_cluster_loses_nothing_and_repeats_nothing() {
    let original = busy().await;
    let younger = PrivatePostgres::start(Options { durable: false, ..Options::default() }).unwrap();
    younger.create_database("shop").unwrap();
    let copy = Database::beside_roles(&younger).await;
    restore(&original, &younger.url("shop"));
    let before = "select pg_snapshot_xmax(settled)::text::bigint - pg_current_xact_id()::text::bigint \
                    from outbox.cursor";
    assert!(copy.count(before).await > 1_000, "the cluster is younger");
    let (_, counts) = adopted(&copy, "--keep-pending").await;
    assert_eq!(counts, sent(ALL + 50, PAST + 50));
    copy.pool.close().await;
    original.drop().await;
}

#[tokio::test]
async fn a_database_copied_by_files_is_told_apart_by_its_name_and_its_environment() {
    let original = busy().await;
    let copy = original.copied().await;
    let (_, counts) = adopted(&copy, "--keep-pending").await;
    assert_eq!(counts, sent(ALL + 50, PAST + 50));
    // As a copied cluster, whose identity is that of the original.
    let staging = Settings { environment: "staging".to_owned(), ..settings("relay") };
    let recorder = Recorder::new();
    let mut relay = fenced_with(&copy, &recorder, staging.clone()).await;
    publish(&copy, 5).await;
    copy.execute("select outbox.adopt(true, 'staging')").await;
    relay.wait(|signal| *signal == Signal::Started).await;
    recorder.wait_for(10).await;
    assert!(relay.stop().await.complete);
    assert_eq!(sent(5, 5), self::counts(&recorder));
    copy.drop().await;
    original.drop().await;
}

async fn cut_connections(database: &Database) {
    database
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
              where datname = current_database() and application_name like 'pgoutbox/%'",
        )
        .await;
}

/// As a promoted standby that lacks the last commits.
#[tokio::test]
async fn a_relay_whose_database_lacks_its_last_commits_begins_anew() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    for round in 1..=3 {
        publish(&database, 1).await;
        recorder.wait_for(round).await;
    }
    relay.wait_asleep().await;
    database.execute("update outbox.cursor set step = step - 2").await;
    cut_connections(&database).await;
    publish(&database, 1).await;
    relay.wait(|signal| *signal == Signal::Started).await;
    recorder.wait_for(4).await;
    assert!(relay.stop().await.complete);
    assert_eq!(counts(&recorder), HashMap::from([("all".to_owned(), 4)]));
    database.drop().await;
}

#[tokio::test]
async fn a_database_that_was_set_back_by_minutes_is_fenced_for_every_relay() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select count(*) = 1 from outbox.relays").await;
    database.execute("update outbox.relays set seen_at = seen_at - interval '5 minutes'").await;
    cut_connections(&database).await;
    publish(&database, 1).await;
    relay.wait(|signal| *signal == Signal::Fenced).await;
    let other = Recorder::new();
    let stranger = fenced_with(&database, &other, settings("other")).await;
    let (mut began, mut also_began) = (relay, stranger);
    assert_eq!((recorder.seen(), other.seen()), (vec![], vec![]));
    adopt(&database, "--keep-pending");
    began.wait(|signal| *signal == Signal::Started).await;
    also_began.wait(|signal| *signal == Signal::Started).await;
    database.eventually("select bool_and(status = 'completed') from outbox.event_status").await;
    assert_eq!(recorder.seen().len() + other.seen().len(), 1);
    assert!(began.stop().await.complete && also_began.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn a_promoted_standby_is_noted_and_not_fenced() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    assert!(relay.stop().await.complete);
    database.execute("update outbox.identity set timeline = 99, recorded_by = pg_current_xact_id()").await;
    let relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select timeline < 99 from outbox.identity").await;
    publish(&database, 1).await;
    recorder.wait_for(1).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// Waits for nobody: a fenced relay can be stopped.
#[tokio::test]
async fn a_fenced_relay_is_not_ready_and_ends_at_once_when_it_is_stopped() {
    let database = Database::new().await;
    let staging = Settings { environment: "staging".to_owned(), ..settings("relay") };
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    let ready = relay.health.ready().await;
    assert_eq!((ready, relay.health.state()["fenced"].as_bool()), (Ok(()), Some(false)));
    assert!(relay.stop().await.complete);
    let relay = fenced_with(&database, &recorder, staging).await;
    let why = relay.health.ready().await.unwrap_err();
    assert!(why.contains("belongs to the environment \"default\""), "{why}");
    assert_eq!(relay.health.state()["fenced"].as_bool(), Some(true));
    let stopped = tokio::time::timeout(Duration::from_secs(10), relay.stop()).await.unwrap();
    assert!(stopped.complete);
    database.drop().await;
}

/// A login that may not run it changes nothing.
#[tokio::test]
async fn only_an_administrator_adopts() {
    let database = Database::new().await;
    let mut relay = sqlx::PgPool::connect_lazy_with(database.relay_options.clone()).acquire().await.unwrap();
    let refused = relay.execute("select outbox.adopt(false)").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    drop(relay);
    database.drop().await;
}

#[tokio::test]
async fn adoption_changes_nothing_where_there_is_nothing_to_adopt_or_it_would_not_last() {
    let database = Database::new().await;
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    assert!(relay.stop().await.complete);
    let refusal = async |sql: &'static str| {
        let mut connection = database.connection().await;
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap_err().to_string()
    };
    assert!(refusal("select outbox.adopt(false)").await.contains("nothing to adopt"));
    assert!(refusal("select outbox.adopt(false, 'default')").await.contains("nothing to adopt"));
    let inside = refusal("begin; savepoint s; select outbox.adopt(true, 'staging')").await;
    assert!(inside.contains("inside a savepoint"), "{inside}");
    // Whoever writes the row is noted.
    database.execute("update outbox.identity set environment = 'staging'").await;
    let is_written =
        "select count(*) from outbox.identity where outbox_internal.is_written_by(xmin, recorded_by)";
    assert_eq!(database.count(is_written).await, 1);
    database.drop().await;
}
