//! The steps by themselves: partitions in the course of time, what a partition has, who may take steps.

use sqlx::{AssertSqlSafe, ConnectOptions as _};

use super::{
    at, beside::Publishers, done, drop_all, drop_one, event, make, make_all, partitions, payloads, routed,
    tried,
};
use crate::support::{Database, database::RELAY_LOGIN};

/// Sixty days, for a period of ten, with publishers that write all the time.
#[tokio::test]
async fn in_sixty_days_there_are_about_twelve_partitions_and_the_events_of_the_period() {
    let database = Database::new().await;
    let publishers = Publishers::start(&database, 0).await;
    let (mut dropped, mut most) = (0, 0);
    let size = "select sum(pg_total_relation_size(relid))::bigint from pg_partition_tree('outbox.events') \
                where isleaf";
    let mut sizes = Vec::new();
    for half_day in 0..120_u32 {
        let now = f64::from(half_day) / 2.0;
        publishers.set_hours(i64::from(half_day) * 12);
        database
            .execute(format!(
                "insert into outbox.attempts (at, subscription_id, position, attempt, duration, outcome, relay)
                 select {} + n * interval '1 hour', 1, n, 1, '1 s', 'retry', 'r' from generate_series(0, 11) as n",
                at(now)
            ))
            .await;
        publishers.wait_for_more().await;
        routed(&database).await;
        for log in ["events", "attempts"] {
            make_all(&database, log, now).await;
            dropped += drop_all(&database, log, now).await;
            most = most.max(partitions(&database, log).await.len());
            assert_eq!(super::kept_by(&database).await, None, "{log}, day {now}");
        }
        if half_day % 20 == 19 {
            sizes.push(database.count(size).await);
            let days = "select (extract(epoch from max(created_at) - min(created_at)) / 86400)::bigint \
                        from outbox.events";
            assert!(database.count(days).await <= 12, "day {now}");
        }
    }
    let (written, longest) = publishers.stop().await;
    assert!(dropped > 90, "{dropped}");
    assert!((11..=13).contains(&most), "{most}");
    // The first ten days fill what the others reuse.
    assert!(sizes[2..].iter().all(|size| *size < 2 * sizes[1]), "the disk is bounded: {sizes:?}");
    let days = |log: &str, column: &str| {
        format!("select (extract(epoch from {} - min({column})) / 86400)::bigint from outbox.{log}", at(59.5))
    };
    assert!((10..=12).contains(&database.count(days("events", "created_at")).await), "the oldest event");
    assert!((10..=12).contains(&database.count(days("attempts", "at")).await), "the oldest attempt");
    let left = database.count("select count(*) from outbox.events").await;
    eprintln!("{left} of {written} events are left, and the longest insert took {longest:?}");
    for log in ["events", "attempts"] {
        assert_eq!(database.count(format!("select count(*) from outbox.{log}_default")).await, 0, "{log}");
    }
    let forgotten = "select (extract(epoch from created_at - timestamptz '2026-03-02Z') / 86400)::bigint \
                     from outbox.forgotten";
    assert!((47..=50).contains(&database.count(forgotten).await), "live clients are told");
    database.drop().await;
}

#[tokio::test]
async fn each_partition_has_the_indexes_triggers_and_identity_of_the_first() {
    let database = Database::new().await;
    for days in [0.0, 1.5] {
        make_all(&database, "events", days).await;
    }
    event(&database, 1, 0.5).await;
    // The statements that make the indexes, without the names.
    let differing = database
        .count(
            "with parts as (select relid from pg_partition_tree('outbox.events') where isleaf),
             has as (
                 select parts.relid,
                        (select array_agg(regexp_replace(pg_get_indexdef(one.indexrelid), '^.* USING ', '') order by 1)
                           from pg_index as one where one.indrelid = parts.relid) as indexes,
                        (select array_agg(format('%s %s %s', one.tgname, one.tgtype, one.tgenabled) order by one.tgname)
                           from pg_trigger as one where one.tgrelid = parts.relid) as triggers,
                        (select array_agg(one.conname order by 1) from pg_constraint as one
                          where one.conrelid = parts.relid and one.contype = 'c') as checks,
                        class.relreplident, class.relowner
                   from parts join pg_class as class on class.oid = parts.relid)
             select count(distinct (indexes::text, triggers::text, checks::text, relreplident, relowner)) from has",
        )
        .await;
    assert_eq!(differing, 1);
    assert!(partitions(&database, "events").await.len() >= 2);
    let replica = "select count(*) from pg_class where oid in (select relid from \
                   pg_partition_tree('outbox.events')) and relreplident <> 'f'";
    assert_eq!(database.count(replica).await, 0, "a publication for all tables forbids no delete");
    // What is deleted from a new one is known.
    let second = partitions(&database, "events").await.pop().unwrap();
    database
        .execute(format!(
            "insert into outbox.events (topic, payload, created_at) values ('a.b', '2', {}); delete from {second}",
            at(2.5)
        ))
        .await;
    assert_eq!(database.count("select position from outbox.forgotten").await, 2);
    assert_eq!(payloads(&database, "outbox.events").await, [1]);
    database.drop().await;
}

/// PL/pgSQL keeps what it has parsed and planned for the whole session, so the first call may differ from the
/// next ones.
#[tokio::test]
async fn a_session_drops_many_partitions_one_after_the_other() {
    let database = Database::new().await;
    for log in ["events", "attempts"] {
        for days in 0..20 {
            make_all(&database, log, f64::from(days) + 0.5).await;
        }
        routed(&database).await;
        let mut session = database.connection().await;
        let step = format!(
            "select coalesce(done, '') from outbox_internal.drop_partition_at('{log}', '10 days', 'keep', {})",
            at(40.0)
        );
        for n in 0..20 {
            let done: String =
                sqlx::query_scalar(AssertSqlSafe(step.as_str())).fetch_one(&mut session).await.unwrap();
            let kept = super::kept_by(&database).await;
            assert_eq!((done.as_str(), kept), ("dropped", None), "{log}, partition {n}");
        }
    }
    database.drop().await;
}

/// No relay came for longer than partitions were made ahead.
#[tokio::test]
async fn what_was_published_while_no_relay_ran_is_kept_for_its_time_and_new_partitions_follow() {
    let database = Database::new().await;
    make_all(&database, "events", 0.0).await;
    for day in 0..40_i32 {
        event(&database, day.into(), f64::from(day)).await;
    }
    assert!(database.count("select count(*) from outbox.events_default").await > 30);
    make_all(&database, "events", 40.0).await;
    routed(&database).await;
    event(&database, 100, 42.0).await;
    let behind = payloads(&database, "outbox.events_default").await;
    assert!(!behind.contains(&100), "the new partitions are used: {behind:?}");
    drop_all(&database, "events", 40.0).await;
    let left = payloads(&database, "outbox.events").await;
    assert_eq!(left, (30..40).chain([100]).collect::<Vec<_>>(), "the last ten days");
    drop_all(&database, "events", 52.5).await;
    assert_eq!(payloads(&database, "outbox.events").await, [100]);
    database.drop().await;
}

#[tokio::test]
async fn old_ids_and_dead_letters_are_deleted_in_parts_and_their_keys_go_on() {
    let database = Database::new().await;
    database
        .execute(format!(
            "insert into outbox.event_ids select gen_random_uuid(), {} - n * interval '1 minute'
               from generate_series(1, 12000) as n;
             insert into outbox.dead_letters (died_at, subscription_id, subscription, reason, attempts, position,
                                              created_at, topic, payload, headers, priority)
             select {} + n * interval '1 day', 1, 'shop', 'timeout', 1, n, now(), 'a.b', '{{}}', '{{}}', 0
               from generate_series(1, 20) as n;
             insert into outbox.parked_keys select 1, id::text, clock_timestamp(), id from outbox.dead_letters",
            at(0.0),
            at(0.0)
        ))
        .await;
    let delete = |what: &str, days: f64| {
        format!("select rows from outbox_internal.delete_old_at('{what}', '10 days', null, {})", at(days))
    };
    let first = delete("event_ids", 8.0);
    assert_eq!([database.count(&first).await, database.count(&first).await], [5_000, 4_120]);
    assert_eq!(database.count(&first).await, 0);
    assert_eq!(database.count("select count(*) from outbox.event_ids").await, 2_880, "those of two days");
    assert_eq!(database.count(delete("dead_letters", 20.5)).await, 10);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 10);
    assert_eq!(database.count("select count(*) from outbox.parked_keys").await, 10);
    database.drop().await;
}

#[tokio::test]
async fn relays_take_steps_within_bounds_and_nobody_else() {
    let database = Database::new().await;
    event(&database, 1, 0.0).await;
    routed(&database).await;
    let steps = [
        "select * from outbox_internal.make_partition('events', '10 days')",
        "select * from outbox_internal.drop_partition('events', '10 days', 'keep')",
        "select * from outbox_internal.delete_old('event_ids', '10 days', null)",
    ];
    let mut relay = database.options.clone().username(RELAY_LOGIN).connect().await.unwrap();
    for sql in steps {
        tried(&mut relay, sql).await.unwrap();
    }
    for (sql, code) in [
        ("select outbox_internal.make_partition('events', '59 minutes')", "22023"),
        ("select outbox_internal.make_partition('deliveries', '10 days')", "22023"),
        ("select outbox_internal.make_partition('events', null)", "22023"),
        ("select outbox_internal.drop_partition('events', '-1 day', 'keep')", "22023"),
        ("select outbox_internal.drop_partition('events', '10 days', 'drop')", "22023"),
        ("select outbox_internal.delete_old('events', '10 days', null)", "22023"),
        ("select outbox_internal.delete_old('event_ids', '1 second', null)", "22023"),
        // The time is not theirs to say.
        (
            "select outbox_internal.drop_partition_at('events', '1 hour', 'keep', now() + interval '1 year')",
            "42501",
        ),
        ("drop table outbox.events_default", "42501"),
        ("delete from outbox.events", "42501"),
    ] {
        let refused = tried(&mut relay, sql).await.expect_err(sql);
        assert_eq!(refused.0, code, "{sql}");
    }
    let far =
        "select (outbox_internal.make_partition_at('events', '10 days', now() + interval '1 year')).problem";
    let problem: Option<String> = sqlx::query_scalar(far).fetch_one(&mut relay).await.unwrap();
    let problem = problem.unwrap();
    assert!(problem.contains("permission denied") || problem.contains("must be owner"), "{problem}");
    for role in ["outbox_admin", "outbox_publisher", "outbox_monitor"] {
        let mut other = database.connection().await;
        tried(&mut other, &format!("set role {role}")).await.unwrap();
        for sql in steps {
            assert_eq!(tried(&mut other, sql).await.unwrap_err().0, "42501", "{role}: {sql}");
        }
    }
    database.drop().await;
}

/// A token that is younger than the period is not too old because of an event that was written later with an
/// old time.
#[tokio::test]
async fn an_event_that_was_written_later_with_an_old_time_leaves_when_tokens_of_that_time_have_expired() {
    let database = Database::new().await;
    make_all(&database, "events", 0.0).await;
    drop_one(&database, "events", "keep", 0.0).await; // notes the transaction id of the time
    for day in 1..=11 {
        drop_one(&database, "events", "keep", f64::from(day)).await;
    }
    event(&database, 1, 0.0).await;
    routed(&database).await;
    drop_one(&database, "events", "keep", 12.0).await;
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "nothing");
    let why = super::kept_by(&database).await.unwrap();
    assert!(why.starts_with("live clients"), "{why}");
    for day in 15..=23 {
        make(&database, "events", f64::from(day)).await;
        drop_one(&database, "events", "keep", f64::from(day)).await;
    }
    assert_eq!(payloads(&database, "outbox.events").await, Vec::<i64>::new());
    database.drop().await;
}
