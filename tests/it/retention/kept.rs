//! Nothing that is owed is dropped.

use sqlx::Row as _;

use super::{
    at, dead_letters, done, drop_all, drop_one, event, kept_by, make_all, partitions, payloads, routed,
};
use crate::support::{Database, Recorder, RelayBox};

/// An event of the first partition that nothing is owed of, and a subscription that does not want it.
async fn old_event(subscription: &str) -> Database {
    let database = Database::new().await;
    database
        .execute(format!("select outbox.subscribe('shop', array['x.y'], 'recorder'{subscription})"))
        .await;
    event(&database, 1, 0.0).await;
    make_all(&database, "events", 0.0).await;
    routed(&database).await;
    database
}

/// The reason for which the partition stays, which ends with `end`: then it is dropped.
async fn stays_until(database: &Database, reason: &str, end: &str) {
    assert_eq!(done(&drop_one(database, "events", "keep", 14.0).await), "nothing", "{reason}");
    assert_eq!(kept_by(database).await.as_deref(), Some(reason));
    assert_eq!(payloads(database, "outbox.events").await, [1]);
    database.execute(end).await;
    assert_eq!(done(&drop_one(database, "events", "keep", 14.0).await), "dropped", "{reason}");
    assert_eq!(kept_by(database).await, None);
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    assert_eq!(database.count("select position from outbox.forgotten").await, 1);
}

#[tokio::test]
async fn a_partition_stays_while_anything_of_it_is_owed() {
    let first = at(0.0);
    let row = "subscription_id, due_at, position, created_at";
    let states: [(&str, String, &str); 6] = [
        (
            "deliveries of shop",
            format!("insert into outbox.deliveries ({row}) values (1, now(), 1, {first})"),
            "delete from outbox.deliveries",
        ),
        (
            "the backlog of shop",
            format!(
                "insert into outbox.backlog (subscription_id, positions, created_from, created_until)
                 values (1, '{{[1,2)}}', {first}, {first})"
            ),
            "delete from outbox.backlog",
        ),
        (
            "deliveries of relay r",
            format!(
                "insert into outbox.pages (lease_token, due_at, relay, created_from, created_until, subscriptions, \
                                           owed, owed_since)
                 values (gen_random_uuid(), now(), 'r', {first}, {first}, '{{1}}', array['{{[1,2)}}'::int8multirange], \
                         array[now()])"
            ),
            "delete from outbox.pages",
        ),
        (
            "dead letters of shop",
            format!(
                "insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, position, \
                                                  created_at, topic, payload, headers, priority)
                 values (1, 'shop', 'timeout', 1, 1, {first}, 'a.b', '1', '{{}}', 0)"
            ),
            "select outbox.discard('shop')",
        ),
        (
            "replay 1",
            format!("select outbox.replay('shop', {first} - interval '1 day')"),
            "select outbox.cancel_replay(1)",
        ),
        (
            "events that are not routed",
            "update outbox.cursor set step = step + 1, settled = '3:3:'".to_owned(),
            "update outbox.cursor set step = step + 1, settled = pg_current_snapshot()",
        ),
    ];
    for (reason, begin, end) in states {
        let database = old_event("").await;
        database.execute(begin).await;
        stays_until(&database, reason, end).await;
        database.drop().await;
    }
    let database = old_event(", start => 'beginning'").await;
    stays_until(&database, "the start of shop", "delete from outbox.starts").await;
    database.drop().await;
}

/// What is owed of other partitions, and of other events within the same times, keeps nothing.
#[tokio::test]
async fn what_is_owed_of_younger_events_keeps_no_older_partition() {
    let database = old_event("").await;
    for days in [1.5, 2.5] {
        make_all(&database, "events", days).await;
    }
    event(&database, 2, 3.1).await;
    routed(&database).await;
    database
        .execute(format!(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at) values (1, now(), 2, {});
             insert into outbox.backlog (subscription_id, positions, created_from, created_until)
             values (1, '{{[2,3)}}', {}, {})",
            at(3.1),
            at(0.0),
            at(3.1)
        ))
        .await;
    assert_eq!(drop_all(&database, "events", 14.0).await, 2, "that one, and one that is empty");
    assert_eq!(payloads(&database, "outbox.events").await, [2]);
    assert_eq!(kept_by(&database).await.as_deref(), Some("the backlog of shop"));
    database.drop().await;
}

#[tokio::test]
async fn what_laggards_are_owed_is_copied_into_dead_letters_and_can_be_redriven() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['a.**'], 'recorder')").await;
    database
        .execute(format!(
            "insert into outbox.events (topic, payload, created_at)
             select 'a.b', to_jsonb(n), {} from generate_series(1, 1203) as n",
            at(0.0)
        ))
        .await;
    make_all(&database, "events", 0.0).await;
    routed(&database).await;
    database
        .execute(format!(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
             select 1, now() + interval '1 day', n, {0}, {0} from generate_series(1, 3) as n;
             insert into outbox.backlog (subscription_id, positions, created_from, created_until, owed_since)
             values (1, '{{[4,1204),[5000,5001)}}', {0}, {0}, {0})",
            at(0.0)
        ))
        .await;
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "nothing");
    let mut steps = Vec::new();
    loop {
        let step = drop_one(&database, "events", "dead-letter", 14.0).await;
        steps.push(done(&step).to_owned());
        if done(&step) != "copied" {
            break;
        }
    }
    assert_eq!(steps, ["copied", "copied", "copied", "copied", "dropped"], "in parts");
    assert_eq!(payloads(&database, "outbox.dead_letters").await, (1..=1203).collect::<Vec<_>>());
    assert_eq!(
        database.count("select count(*) from outbox.dead_letters where reason = 'retention'").await,
        1203
    );
    let left = sqlx::query("select positions::text from outbox.backlog").fetch_one(&database.pool).await;
    assert_eq!(left.unwrap().get::<String, _>(0), "{[5000,5001)}");
    database.execute("delete from outbox.backlog").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    assert_eq!(database.count("select outbox.redrive('shop', max_rows => 5)").await, 5);
    let seen = recorder.wait_for(5).await;
    assert_eq!(seen.iter().filter(|one| one.topic == "a.b").count(), 5);
    assert!(relay.stop().await.complete);
    // What was put back into the log leaves again.
    assert_eq!(database.count("select count(*) from outbox.events").await, 5);
    let step = drop_one(&database, "events", "dead-letter", 14.0).await;
    assert_eq!((done(&step), step.1.as_deref()), ("deleted", Some("events_default")));
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    database.drop().await;
}

/// The default partition has rows of times that another partition covers, too.
#[tokio::test]
async fn what_is_owed_beside_old_rows_of_the_default_partition_stays_owed() {
    let database = old_event("").await;
    for days in [1.0, 2.0, 3.0] {
        make_all(&database, "events", days).await;
    }
    event(&database, 2, 4.2).await;
    routed(&database).await;
    drop_all(&database, "events", 14.0).await;
    event(&database, 3, 0.0).await; // as if a redrive had put it back
    routed(&database).await;
    let owed = format!(
        "insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
         values (1, now() + interval '1 day', 2, {0}, {0})",
        at(4.2)
    );
    database.execute(owed).await;
    for days in [14.5, 14.6] {
        drop_one(&database, "events", "dead-letter", days).await;
        assert_eq!(payloads(&database, "outbox.events").await.first(), Some(&2), "{days}");
        assert_eq!(database.count("select count(*) from outbox.deliveries").await, 1, "{days}");
    }
    assert_eq!(payloads(&database, "outbox.events").await, [2], "what was put back has left");
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 15.5).await), "copied");
    assert_eq!(payloads(&database, "outbox.dead_letters").await, [2]);
    database.drop().await;
}

/// What is redriven is tried for a period, however old its event is.
#[tokio::test]
async fn what_was_redriven_is_not_given_up_at_the_next_look() {
    let database = old_event("").await;
    dead_letters(&database).await;
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "dropped");
    assert_eq!(database.count("select outbox.redrive('shop')").await, 1);
    for _ in 0..2 {
        assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "nothing");
        assert_eq!(database.count("select count(*) from outbox.deliveries").await, 1);
    }
    assert_eq!(kept_by(&database).await.as_deref(), Some("deliveries of shop"));
    database.drop().await;
}

/// With `dead-letter`, what is leased is left to its relay, and what is not routed stays.
#[tokio::test]
async fn what_a_relay_holds_or_has_not_routed_stays_also_with_dead_letter() {
    let database = old_event("").await;
    database
        .execute(format!(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at, lease_token)
             values (1, now() + interval '1 minute', 1, {}, gen_random_uuid())",
            at(0.0)
        ))
        .await;
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "nothing");
    assert_eq!(kept_by(&database).await.as_deref(), Some("deliveries of shop"));
    database
        .execute("delete from outbox.deliveries; update outbox.cursor set step = step + 1, settled = '3:3:'")
        .await;
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "nothing");
    assert_eq!(kept_by(&database).await.as_deref(), Some("events that are not routed"));
    assert_eq!(partitions(&database, "events").await.len(), 1);
    database.drop().await;
}
