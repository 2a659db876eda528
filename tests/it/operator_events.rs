//! Operators' events: what happens to subscriptions is published through the outbox itself, to those who ask
//! for it, and causes no further events; and subscriptions that fail for too long are disabled.

use std::time::Duration;

use pgoutbox::{
    Reason,
    delivery::Outcome,
    relay::{Settings, telemetry::Signal},
    store::SubscriptionState,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::support::{Database, Recorder, RelayBox, recorder::Seen, relay::settings};

async fn subscribe(database: &Database, name: &str, topics: &str, retry: Value) {
    sqlx::query("select outbox.subscribe($1, $2::text[], 'recorder', retry => $3)")
        .bind(name)
        .bind(topics)
        .bind(retry)
        .execute(&database.pool)
        .await
        .unwrap();
}

/// Topic without its beginning, and the name in the payload.
fn said(seen: &Seen) -> String {
    let payload: Value = serde_json::from_str(&seen.payload).unwrap();
    let what = seen.topic.strip_prefix("outbox.subscription.").unwrap_or(&seen.topic);
    let state = payload.get("state").and_then(Value::as_str).map(|state| format!(" {state}"));
    let name = payload["subscription"].as_str().unwrap_or_default();
    format!("{what}{} {name}", state.unwrap_or_default())
}

/// What a subscription was told.
fn told(recorder: &Recorder, subscription: &str) -> Vec<String> {
    recorder.seen().iter().filter(|seen| seen.subscription == subscription).map(said).collect()
}

/// Events in the log about subscriptions, in order.
async fn published(database: &Database) -> Vec<String> {
    sqlx::query_scalar(
        "select split_part(topic, '.', 3) || coalesce(' ' || (payload ->> 'state'), '') || ' ' || key \
         from outbox.events where starts_with(topic, 'outbox.') order by position",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
}

async fn refusal(database: &Database, login: &str, sql: &str) -> String {
    let options = database.options.clone().username(login);
    let mut connection = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let error = connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_err();
    connection.close().await.unwrap();
    error.into_database_error().unwrap().message().to_owned()
}

#[tokio::test]
async fn pauses_and_resumes_are_published_with_who_did_it_to_those_who_ask_for_them() {
    let database = Database::new().await;
    subscribe(&database, "watch", "{outbox.**}", json!({})).await;
    subscribe(&database, "all", "{**}", json!({})).await;
    subscribe(&database, "shop", "{shop.**}", json!({})).await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    let admin = format!("admin_{}", uuid::Uuid::new_v4().simple());
    database.execute(format!("create role {admin} login in role outbox_admin")).await;
    let options = database.options.clone().username(&admin);
    let mut operator = sqlx::PgConnection::connect_with(&options).await.unwrap();
    operator.execute("select outbox.pause('shop')").await.unwrap();
    operator.execute("select outbox.pause('shop')").await.unwrap(); // changes nothing
    operator.execute("select outbox.resume('shop')").await.unwrap();
    operator.execute("update outbox.subscriptions set active = false where name = 'shop'").await.unwrap();
    operator.execute("update outbox.subscriptions set active = true where name = 'shop'").await.unwrap();
    let rolled_back = "begin; select outbox.pause('shop'); rollback";
    operator.execute(sqlx::raw_sql(rolled_back)).await.unwrap();
    database.execute("select outbox.publish('shop.done', '{\"subscription\": \"shop\"}')").await;
    recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == "watch").count() >= 4).await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.subscription == "all")).await;
    let expected = ["paused shop", "resumed shop", "paused shop", "resumed shop"];
    let mut watched = told(&recorder, "watch");
    watched.sort_unstable();
    assert_eq!(watched, ["paused shop", "paused shop", "resumed shop", "resumed shop"]);
    assert_eq!(told(&recorder, "all"), ["shop.done shop"], "** is what applications publish");
    assert_eq!(published(&database).await, expected);
    let by = "select count(*) from outbox.events where payload ->> 'by' = ";
    assert_eq!(database.count(format!("{by}'{admin}'")).await, 4);
    operator.close().await.unwrap();
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn an_event_of_a_tenants_subscription_is_of_that_tenant() {
    let database = Database::new().await;
    for organization in ["acme", "other"] {
        sqlx::query("select outbox.subscribe($1, '{outbox.**}', 'recorder', organization => $1)")
            .bind(organization)
            .execute(&database.pool)
            .await
            .unwrap();
    }
    database.execute("select outbox.subscribe('shop', '{a.*}', 'recorder', organization => 'acme')").await;
    subscribe(&database, "everything", "{outbox.**}", json!({})).await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.pause('shop')").await;
    recorder.wait_for(2).await;
    relay.wait_asleep().await;
    let mut names: Vec<String> = recorder.seen().into_iter().map(|seen| seen.subscription).collect();
    names.sort_unstable();
    assert_eq!(names, ["acme", "everything"]);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn subscriptions_to_operators_events_that_fail_and_are_paused_cause_no_endless_stream() {
    let database = Database::new().await;
    // Each of them sees what happens to the other, and both fail.
    for name in ["one", "two"] {
        subscribe(&database, name, "{outbox.**}", json!({"schedule": ["0s", "0s"]})).await;
    }
    let recorder = Recorder::answering(|_| Outcome::Gone);
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.pause('one')").await;
    let is_gone = |signal: &Signal| {
        matches!(signal, Signal::SubscriptionChanged { state: SubscriptionState::Gone, .. })
    };
    relay.wait(is_gone).await; // `two` is told of the pause, and answers 410
    database.execute("select outbox.resume('one')").await; // `one` is told that `two` is gone
    relay.wait(is_gone).await;
    relay.wait_asleep().await;
    assert_eq!(published(&database).await, ["paused one", "gone two", "resumed one", "gone one"]);
    assert!(told(&recorder, "one").iter().all(|told| told.ends_with("two")), "{:?}", recorder.seen());
    assert!(told(&recorder, "two").iter().all(|told| told.ends_with("one")), "{:?}", recorder.seen());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn only_the_owner_of_the_outbox_publishes_topics_that_begin_with_outbox() {
    let database = Database::new().await;
    let login = format!("publisher_{}", uuid::Uuid::new_v4().simple());
    database.execute(format!("create role {login} login in role outbox_publisher")).await;
    database.execute(format!("create schema own authorization {login}")).await;
    for sql in [
        "select outbox.publish('outbox.subscription.paused', '{}')",
        "insert into outbox.events (topic, payload) values ('outbox.x', '{}')",
    ] {
        let message = refusal(&database, &login, sql).await;
        assert!(message.contains("topic: ") && message.contains("reserved"), "{sql}: {message}");
    }
    let capture =
        "create table own.t (id int primary key); select outbox.capture('own.t', 'outbox.subscription')";
    let options = database.options.clone().username(&login);
    let mut publisher = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let error = publisher.execute(sqlx::raw_sql(capture)).await.unwrap_err().to_string();
    assert!(error.contains("topic: ") && error.contains("reserved"), "{error}");
    let bridged = "create table own.box (kind text, payload jsonb);
                   select outbox.bridge('own.box', topic => '{kind}.subscription.paused');
                   insert into own.box values ('outbox', '{}'), ('shop', '{}')";
    publisher.execute(sqlx::raw_sql(bridged)).await.unwrap();
    publisher.execute("select outbox.publish('outboxes.x', '{}')").await.unwrap();
    publisher.close().await.unwrap();
    database.execute("select outbox.publish('outbox.mine', '{}')").await; // the owner
    let topics = "select count(*) from outbox.events where starts_with(topic, 'outbox.')";
    assert_eq!(database.count(topics).await, 1);
    assert_eq!(database.count("select count(*) from outbox.events").await, 4, "nothing is lost");
    database.drop().await;
}

#[tokio::test]
async fn a_pause_succeeds_although_it_cannot_be_published() {
    let database = Database::new().await;
    subscribe(&database, "shop", "{a.*}", json!({})).await;
    database
        .execute(
            "create function public.never() returns trigger language plpgsql as \
             $$ begin raise exception 'no'; end $$",
        )
        .await;
    database
        .execute(
            "create trigger never before insert on outbox.events for each row \
             execute function public.never()",
        )
        .await;
    database.execute("select outbox.pause('shop')").await;
    assert_eq!(database.count("select count(*) from outbox.subscriptions where not active").await, 1);
    database.drop().await;
}

#[tokio::test]
async fn a_backlog_that_is_too_old_is_announced_once_and_once_more_when_it_is_over() {
    let database = Database::new().await;
    subscribe(&database, "slow", "{a.*}", json!({"schedule": ["1h"]})).await;
    subscribe(&database, "paused", "{a.*}", json!({})).await;
    database.execute("select outbox.pause('paused')").await;
    let alert = |name: &str| Settings { backlog_alert: Some(Duration::from_secs(60)), ..settings(name) };
    let failing = Recorder::answering(|_| Outcome::Retry { reason: Reason::ServerError, after: None });
    let start = async |name: &str, recorder: &Recorder| {
        let settings = alert(name);
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(recorder.clone())).await
    };
    let mut relay = start("first", &failing).await;
    database.execute("select outbox.publish('a.b', '1')").await;
    relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "retry", .. })).await;
    relay.stop().await;
    // Each relay measures when it starts.
    database
        .execute(
            "update outbox.deliveries set owed_since = now() - interval '2 minutes';
             update outbox.backlog set owed_since = now() - interval '2 minutes'",
        )
        .await;
    let logged = async |count: usize| {
        let counted = format!(
            "select count(*) = {count} from outbox.events where topic = 'outbox.subscription.backlog'"
        );
        database.eventually(&counted).await;
    };
    let (second, third) = (start("second", &failing).await, start("third", &failing).await);
    logged(1).await;
    let working = Recorder::new();
    let fourth = start("fourth", &working).await;
    second.stop().await;
    third.stop().await;
    database.execute("select outbox.retry('slow')").await;
    database.eventually("select not exists (select from outbox.deliveries)").await;
    fourth.stop().await;
    let fifth = start("fifth", &working).await;
    logged(2).await;
    fifth.stop().await;
    assert_eq!(published(&database).await, ["paused paused", "backlog over slow", "backlog cleared slow"]);
    // Ten minutes pass before it is announced again.
    let note = |age: u32| format!("select outbox_internal.note_backlogs('{{1}}', '{{{age}}}', 60)");
    database.execute(note(61)).await;
    assert_eq!(published(&database).await.len(), 3);
    database.execute("update outbox.announcements set cleared_at = now() - interval '11 minutes'").await;
    database.execute(note(61)).await;
    database.execute(note(59)).await; // above half of the limit: it is not over yet
    database.execute(note(61)).await;
    assert_eq!(published(&database).await[3..], ["backlog over slow"]);
    database.drop().await;
}

#[tokio::test]
async fn relays_that_disagree_about_a_subscription_announce_it_once() {
    let database = Database::new().await;
    subscribe(&database, "shop", "{a.*}", json!({})).await;
    let set = |state: &str, why: &str| {
        format!("update outbox.subscriptions set state = '{state}', state_reason = {why}")
    };
    for _ in 0..3 {
        database.execute(set("invalid", "'config.url: bad'")).await;
        database.execute(set("ok", "null")).await;
    }
    database.execute(set("invalid", "'another reason'")).await;
    assert_eq!(published(&database).await, ["invalid shop", "invalid shop"]);
    database.drop().await;
}

/// A relay whose attempts fail, and the subscription whose failures are this old.
async fn failing_for(database: &Database, age: &str) -> (RelayBox, Recorder) {
    let retry = json!({"schedule": ["0s", "1h"], "disable_after": "1h"});
    subscribe(database, "shop", "{a.*}", retry).await;
    subscribe(database, "watch", "{outbox.**}", json!({})).await;
    let recorder = Recorder::answering(|seen| match seen.topic.as_str() {
        "a.bad" => Outcome::Retry { reason: Reason::ServerError, after: None },
        _ => Outcome::Delivered,
    });
    let relay = RelayBox::start(database, &recorder).await;
    database.execute("select outbox.publish('a.bad', '1')").await;
    database.eventually("select failing_since is not null from outbox.subscription_health").await;
    relay.stop().await;
    let older = format!("update outbox.subscription_health set failing_since = now() - interval '{age}'");
    database.execute(older).await;
    (RelayBox::start(database, &recorder).await, recorder)
}

#[tokio::test]
async fn a_subscription_that_fails_for_too_long_is_disabled_also_after_a_restart_and_resumed_with_all() {
    let database = Database::new().await;
    let (mut relay, recorder) = failing_for(&database, "61 minutes").await;
    assert_eq!(database.count("select count(*) from outbox.subscriptions where state = 'disabled'").await, 0);
    database.execute("select outbox.publish('a.bad', '2')").await; // it fails still
    let disabled = |signal: &Signal| {
        let is_shop = |name: &String| name == "shop";
        matches!(signal, Signal::SubscriptionChanged { state: SubscriptionState::Disabled, subscription }
                         if is_shop(subscription))
    };
    relay.wait(disabled).await;
    let state = "select count(*) from outbox.subscriptions where name = 'shop' and state = 'disabled' \
                 and state_reason like 'no attempt has succeeded since %Z, for longer than \
                 retry.disable_after (1h); outbox.resume() sends again'";
    assert_eq!(database.count(state).await, 1);
    recorder.wait_until(|seen| seen.iter().any(|one| one.subscription == "watch")).await;
    assert_eq!(told(&recorder, "watch"), ["disabled shop"]);
    // Its events wait.
    database.execute("select outbox.publish('a.good', '3')").await;
    database.eventually("select count(*) = 1 from outbox.backlog where not is_suspect").await;
    database.execute("select outbox.resume('shop')").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.good")).await;
    recorder.wait_until(|seen| seen.iter().any(|one| said(one) == "resumed shop")).await;
    assert_eq!(database.count("select count(*) from outbox.subscriptions where state = 'disabled'").await, 0);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn what_another_relay_delivers_is_not_disabled_and_neither_is_what_was_resumed() {
    let database = Database::new().await;
    subscribe(&database, "shop", "{a.*}", json!({"disable_after": "1h"})).await;
    let judge = async |success: &str, first: &str, last: &str| {
        let text = std::fs::read_to_string("sql/relay/judge_failing.sql").unwrap();
        let rows = sqlx::query(AssertSqlSafe(text))
            .bind(vec![1i64])
            .bind(vec![success.parse::<f64>().ok()])
            .bind(vec![first.parse::<f64>().ok()])
            .bind(vec![last.parse::<f64>().ok()])
            .bind(vec![3_600f64])
            .fetch_all(&database.pool)
            .await
            .unwrap();
        rows.len()
    };
    let failing = "select count(*) from outbox.subscription_health where failing_since is not null";
    // Nothing is kept of what works.
    assert_eq!(judge("1", "", "").await, 0);
    assert_eq!(database.count("select count(*) from outbox.subscription_health").await, 0);
    // One relay has failed for two hours, and another delivers.
    assert_eq!(judge("", "3590", "1").await, 0);
    assert_eq!(judge("0.5", "", "").await, 0);
    assert_eq!(database.count(failing).await, 0);
    assert_eq!(judge("", "7200", "100").await, 0, "its failures are older than the other's success");
    assert_eq!(judge("", "7200", "0").await, 0, "it counts from its last failure");
    assert_eq!(database.count(failing).await, 1);
    // Both fail, each for less than that, and together for longer.
    database.execute("delete from outbox.subscription_health").await;
    assert_eq!(judge("", "5000", "3000").await, 0);
    database.execute("select outbox.pause('shop')").await;
    assert_eq!(judge("", "100", "1").await, 0, "it is paused");
    database.execute("select outbox.resume('shop')").await;
    assert_eq!(judge("", "5000", "3").await, 0, "all of it was before it was resumed");
    database.execute("update outbox.subscriptions set resumed_at = null").await;
    database.execute("delete from outbox.subscription_health").await;
    assert_eq!(judge("", "5000", "3000").await, 0);
    assert_eq!(judge("", "100", "1").await, 1);
    database.drop().await;
}

#[tokio::test]
async fn a_plain_update_that_resumes_counts_as_a_resume() {
    let database = Database::new().await;
    subscribe(&database, "shop", "{a.*}", json!({})).await;
    database.execute("update outbox.subscriptions set active = false").await;
    assert_eq!(database.count("select count(resumed_at) from outbox.subscriptions").await, 0);
    database.execute("update outbox.subscriptions set active = true").await;
    assert_eq!(database.count("select count(resumed_at) from outbox.subscriptions").await, 1);
    database.drop().await;
}

#[tokio::test]
async fn a_bad_disable_after_is_refused_with_its_name() {
    let database = Database::new().await;
    let subscribe = |value: &str| {
        format!(
            "select outbox.subscribe('s', '{{a.*}}', 'recorder', retry => '{{\"disable_after\": {value}}}')"
        )
    };
    let mut connection = database.connection().await;
    for value in ["\"5\"", "5", "\"59s\"", "\"999ms\"", "[]"] {
        let error = connection.execute(AssertSqlSafe(subscribe(value))).await.unwrap_err().to_string();
        assert!(error.contains("retry.disable_after: "), "{value}: {error}");
    }
    for value in ["\"1m\"", "\"60s\"", "\"5d\""] {
        connection.execute(AssertSqlSafe(subscribe(value))).await.unwrap();
    }
    connection.close().await.unwrap();
    database.drop().await;
}
