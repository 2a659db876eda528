//! A partition that cannot be dropped, one of the future, a clock that was wrong: the rest goes on.

use super::{at, done, drop_one, event, kept_by, make_all, partitions, payloads, routed};
use crate::support::Database;

/// What fails for one partition is named and keeps no other.
#[tokio::test]
async fn a_partition_that_cannot_be_dropped_says_why_and_the_others_leave() {
    let database = Database::new().await;
    for days in [0.0, 1.5, 2.5] {
        make_all(&database, "events", days).await;
    }
    routed(&database).await;
    let parts = partitions(&database, "events").await;
    database.execute(format!("create view public.report as select * from {}", parts[0])).await;
    let mut dropped = 0;
    while done(&drop_one(&database, "events", "keep", 30.0).await) == "dropped" {
        dropped += 1;
    }
    assert_eq!(dropped, parts.len() - 1);
    let why = kept_by(&database).await.unwrap();
    assert!(why.starts_with("an error: cannot drop table"), "{why}");
    database.execute("drop view public.report").await;
    assert_eq!(done(&drop_one(&database, "events", "keep", 30.0).await), "dropped");
    database.drop().await;
}

/// Somebody has made one for a later time, or the clock was wrong for a while.
#[tokio::test]
async fn partitions_are_made_before_a_later_one_too() {
    let database = Database::new().await;
    make_all(&database, "events", 0.0).await;
    database
        .execute(format!(
            "create table outbox.events_later partition of outbox.events for values from ({}) to ({})",
            "'2026-04-01 12:00:00+00'", "'2026-05-01 00:00:00+00'"
        ))
        .await;
    for half_days in 0..124_i32 {
        let days = f64::from(half_days) / 2.0;
        make_all(&database, "events", days).await;
        event(&database, half_days.into(), days + 0.4).await;
    }
    assert_eq!(payloads(&database, "outbox.events_default").await, Vec::<i64>::new());
    database.drop().await;
}

/// A clock that is months ahead for a while removes nothing.
#[tokio::test]
async fn after_a_jump_of_the_clock_nothing_is_removed_for_ten_minutes() {
    let database = Database::new().await;
    let steady = async |days: f64, minutes: i64| {
        let time = format!("({} + {minutes} * interval '1 minute')", at(days));
        database
            .execute(format!("select outbox_internal.note_period('events', '10 days', null, {time}, null)"))
            .await;
        database.count(format!("select outbox_internal.is_steady('events', {time})::int::bigint")).await == 1
    };
    assert!(!steady(0.0, 0).await && !steady(0.0, 9).await && steady(0.0, 10).await, "a new outbox");
    assert!(!steady(60.0, 0).await && !steady(60.0, 1).await, "months ahead");
    assert!(!steady(0.0, 12).await && !steady(0.0, 21).await && steady(0.0, 22).await, "and back");
    assert!(steady(2.0, 0).await, "a relay that runs once in a while");
    // By the clock that is right again, looks are noted.
    database.execute("update outbox.retention_periods set looked_at = now() + interval '60 days'").await;
    database.execute("select outbox_internal.make_partition('events', '10 days')").await;
    let ahead =
        "select count(*) from outbox.retention_periods where greatest(looked_at, steady_since) > now()";
    assert_eq!(database.count(ahead).await, 0);
    database.drop().await;
}
