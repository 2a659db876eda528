//! Waiting for an event after its commit.

use std::time::{Duration, Instant};

use pgoutbox::{
    EventStatus, Said, SaidState,
    delivery::{Outcome, Reason},
    relay::{AttemptLog, Settings},
    wait,
};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, Row as _};
use uuid::Uuid;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

async fn publish(database: &Database, topic: &str) -> Uuid {
    sqlx::query_scalar("select outbox.publish($1, '{}')").bind(topic).fetch_one(&database.pool).await.unwrap()
}

async fn subscribe(database: &Database, name: &str) {
    sqlx::query(
        "select outbox.subscribe($1, array['shop.**'], 'recorder', \
                                 retry => '{\"schedule\": [\"1h\"], \"jitter\": 0}')",
    )
    .bind(name)
    .execute(&database.pool)
    .await
    .unwrap();
}

/// Delivers for `good`, refuses for `bad`, fails for others.
fn by_name() -> Recorder {
    Recorder::answering(|seen| match seen.subscription.as_str() {
        "good" => Outcome::Delivered,
        "bad" => Outcome::Rejected { reason: Reason::Refused },
        _ => Outcome::Retry { reason: Reason::Timeout, after: None },
    })
}

async fn relay(database: &Database, recorder: &Recorder) -> RelayBox {
    let all = Settings { attempt_log: AttemptLog::All, ..settings("relay") };
    RelayBox::start_with(database, |builder| builder.settings(all).sink(recorder.clone())).await
}

fn states(said: &[Said]) -> Vec<(&str, SaidState, Option<&str>)> {
    said.iter().map(|one| (one.subscription.as_str(), one.state, one.reason.as_deref())).collect()
}

#[tokio::test]
async fn a_wait_ends_when_nothing_is_owed_with_what_each_subscription_said() {
    let database = Database::new().await;
    subscribe(&database, "good").await;
    subscribe(&database, "bad").await;
    let relay = relay(&database, &by_name()).await;
    let mut connection = database.connection().await;
    let limit = Duration::from_secs(30);
    let (both, nobody) = (publish(&database, "shop.sold").await, publish(&database, "else").await);
    let waited = wait(&mut connection, both, limit).await.unwrap();
    assert_eq!((waited.event_id, waited.status), (both, EventStatus::Failed));
    // A relay records attempts just after their verdicts.
    database.eventually("select count(*) = 2 from outbox.attempts").await;
    let waited = wait(&mut connection, both, limit).await.unwrap();
    assert_eq!(
        states(&waited.subscriptions.unwrap()),
        [("bad", SaidState::DeadLetter, Some("refused")), ("good", SaidState::Delivered, None)]
    );
    let waited = wait(&mut connection, nobody, limit).await.unwrap();
    assert_eq!((waited.status, waited.subscriptions), (EventStatus::Completed, Some(Vec::new())));
    // One who retries holds it up, and a dead letter that was discarded fails it no longer.
    subscribe(&database, "slow").await;
    let late = publish(&database, "shop.sold").await;
    database.eventually("select count(*) = 1 from outbox.deliveries where attempt = 1").await;
    database.eventually("select count(*) = 5 from outbox.attempts").await;
    let waited = wait(&mut connection, late, Duration::from_millis(50)).await.unwrap();
    assert_eq!(waited.status, EventStatus::Pending);
    let said = waited.subscriptions.unwrap();
    assert_eq!(states(&said)[2], ("slow", SaidState::Waiting, Some("timeout")), "{said:?}");
    assert!(said[2].due_at.is_some() && said[2].attempts == 1, "{said:?}");
    database.execute("select outbox.cancel('slow')").await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    database.execute("select outbox.discard()").await;
    let waited = wait(&mut connection, late, limit).await.unwrap();
    assert_eq!(waited.status, EventStatus::Completed);
    assert_eq!(states(&waited.subscriptions.unwrap())[0], ("bad", SaidState::Settled, Some("refused")));
    connection.close().await.unwrap();
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_wait_sees_what_is_delivered_while_it_lasts_and_has_no_transaction_id() {
    let database = Database::new().await;
    subscribe(&database, "good").await;
    let recorder = by_name();
    let relay = relay(&database, &recorder).await;
    let closed = recorder.gate.clone().write_owned().await;
    let id = publish(&database, "shop.sold").await;
    recorder.wait_for(1).await;
    let waiting = async {
        let mut transaction = database.pool.begin().await.unwrap();
        let status: String = sqlx::query_scalar("select outbox.wait($1, '1h')")
            .bind(id)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        transaction.rollback().await.unwrap();
        status
    };
    let opening = async {
        database
            .eventually(
                "select bool_and(backend_xid is null) from pg_stat_activity \
                  where query like 'select outbox.wait(%' and wait_event = 'PgSleep'",
            )
            .await;
        drop(closed);
    };
    let both = async { tokio::join!(waiting, opening) };
    let (status, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    assert_eq!(status, "completed");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_wait_without_progress_ends_in_time_as_pending_and_looks_seldom() {
    let database = Database::new().await;
    let id = publish(&database, "shop.sold").await;
    let mut connection = database.connection().await;
    let looks = "select (seq_scan + idx_scan)::bigint from pg_stat_user_tables where relname = 'cursor'";
    let before = database.count(looks).await;
    let began = Instant::now();
    let sql = "select outbox.wait($1, '1.5s')";
    let status: String = sqlx::query_scalar(sql).bind(id).fetch_one(&mut connection).await.unwrap();
    assert_eq!(status, "pending", "no relay has routed it");
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    connection.close().await.unwrap();
    let made = || async { database.count(looks).await - before };
    database
        .eventually(&format!(
            "select seq_scan + idx_scan > {before} from pg_stat_user_tables where relname = 'cursor'"
        ))
        .await;
    assert!((3..40).contains(&made().await), "{} looks in 1.5 s", made().await);
    let mut connection = database.connection().await;
    let began = Instant::now();
    let waited = wait(&mut connection, id, Duration::from_millis(2200)).await.unwrap();
    assert_eq!(waited.status, EventStatus::Pending);
    assert!(began.elapsed() >= Duration::from_millis(2200), "{:?}", began.elapsed());
    connection.close().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn what_cannot_be_waited_for_is_refused_with_what_to_do() {
    let database = Database::new().await;
    let id = publish(&database, "shop.sold").await;
    let mut connection = database.connection().await;
    let refusal = async |connection: &mut sqlx::PgConnection, begin: &str, call: &str| {
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute(sqlx::AssertSqlSafe(begin.to_owned())).await.unwrap();
        let sql = sqlx::AssertSqlSafe(format!("select outbox.wait({call})"));
        let error = transaction.fetch_one(sql).await.map(|row| row.get::<String, _>(0)).unwrap_err();
        transaction.rollback().await.unwrap();
        let error = error.into_database_error().unwrap();
        assert_eq!(error.code().as_deref(), Some("22023"), "{error}");
        error.message().to_owned()
    };
    let own = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let read = "set transaction isolation level read committed";
    let begin = format!("savepoint s; select outbox.publish('shop.own', '{{}}', id => '{own}')");
    let repeatable = "set transaction isolation level repeatable read";
    for (begin, call, message) in [
        (read, "null".to_owned(), "event: is null"),
        (read, format!("'{id}', null"), "timeout: null is not above 0"),
        (read, format!("'{id}', '0s'"), "timeout: 00:00:00 is not above 0 and at most 1 hour"),
        (read, format!("'{id}', '-1s'"), "timeout: -00:00:01 is not"),
        (read, format!("'{id}', '61min'"), "timeout: 01:01:00 is not"),
        (
            repeatable,
            format!("'{id}'"),
            "outbox.wait cannot see progress in a transaction that is repeatable",
        ),
        (&begin, format!("'{own}'"), &format!("event: {own} was published by this transaction")),
        (read, format!("'{own}'"), &format!("event: there is no event {own}, and no dead letter of it")),
    ] {
        let said = refusal(&mut connection, begin, &call).await;
        assert!(said.starts_with(message), "{call}: {said}");
    }
    for timeout in [Duration::ZERO, Duration::from_secs(3601)] {
        let refused = wait(&mut connection, id, timeout).await.unwrap_err().to_string();
        assert!(refused.starts_with("timeout: "), "{refused}");
    }
    // What has left the log is known as long as there is a dead letter.
    database
        .execute(
            "insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, position, \
                                              created_at, topic, payload, headers, priority) \
             select 1, 'gone', 'timeout', 12, id, position, created_at, topic, payload, headers, 0 from outbox.events; \
             delete from outbox.events",
        )
        .await;
    let waited = wait(&mut connection, id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(waited.status, EventStatus::Failed);
    assert_eq!(states(&waited.subscriptions.unwrap()), [("gone", SaidState::DeadLetter, Some("timeout"))]);
    connection.close().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn publish_waits_on_the_command_line_and_its_exit_code_says_whether_all_got_it() {
    let database = Database::new().await;
    subscribe(&database, "good").await;
    let relay = relay(&database, &by_name()).await;
    let run = async |arguments: &'static [&'static str]| {
        let command = database.command(arguments);
        let output = tokio::task::spawn_blocking(move || {
            let mut command = command;
            command.output().unwrap()
        });
        let output = output.await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // The same id twice is one event: the second call says the same of it, once the attempt is recorded.
    const OWN: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let (code, said, notes) = run(&["publish", "shop.sold", "--id", OWN, "--wait", "30s"]).await;
    assert!(code == Some(0) && said.starts_with(OWN), "{said}{notes}");
    database.eventually("select count(*) = 1 from outbox.attempts").await;
    let (code, said, notes) = run(&["publish", "shop.sold", "--id", OWN, "--wait", "30s"]).await;
    assert_eq!(code, Some(0), "{said}{notes}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0] == OWN && lines[2].starts_with("good          delivered"), "{said}");
    assert!(notes.starts_with("completed: "), "{notes}");
    subscribe(&database, "bad").await;
    let (code, said, notes) = run(&["publish", "shop.sold", "--wait", "30s", "--json"]).await;
    assert_eq!(code, Some(1), "{said}{notes}");
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&json["status"], &json["subscriptions"][0]["state"]),
        (&"failed".into(), &"dead_letter".into())
    );
    assert_eq!(json["subscriptions"][0]["reason"], "refused", "{said}");
    relay.stop().await;
    let (code, said, notes) = run(&["publish", "shop.sold", "--wait", "100ms"]).await;
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(notes.starts_with("still pending after 100ms"), "{notes}");
    let (code, said, _) = run(&["publish", "shop.sold", "--json"]).await;
    let json: Value = serde_json::from_str(&said).unwrap();
    assert!(code == Some(0) && json["event_id"].as_str().unwrap().parse::<Uuid>().is_ok(), "{said}");
    let (code, ..) = run(&["publish", "shop.sold", "--wait", "2h"]).await;
    assert_eq!(code, Some(2));
    database.drop().await;
}

/// A publisher may not read what subscribers answer.
#[tokio::test]
async fn a_publisher_waits_and_is_told_the_status_only() {
    let database = Database::new().await;
    let login = format!("publisher_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {login} login in role outbox_publisher")).await;
    subscribe(&database, "bad").await;
    let relay = relay(&database, &by_name()).await;
    let publisher = sqlx::PgPool::connect_lazy_with(database.options.clone().username(&login));
    let mut connection = publisher.acquire().await.unwrap();
    let id = sqlx::query_scalar("select outbox.publish('shop.sold', '{}')")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let waited = wait(&mut connection, id, Duration::from_secs(30)).await.unwrap();
    assert_eq!((waited.status, waited.subscriptions), (EventStatus::Failed, None));
    drop(connection);
    publisher.close().await;
    relay.stop().await;
    database.drop().await;
}
