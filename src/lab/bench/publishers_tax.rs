//! The cost for publishers: commits of single events by many writers, compared with the same insert into an
//! ordinary table.

use super::{
    Row,
    report::{Figure, Report},
    running::{Noop, Permits, Running},
    stage::Stage,
    writers::closed_loop,
};

const FLOOR: &str = "the same insert into an ordinary table: the same columns but xid, a primary key on \
                     position, native defaults (gen_random_uuid, clock_timestamp), no trigger, check, \
                     partition or further index";

/// Tables as an application would make them: plain, with a trigger that calls NOTIFY, and captured.
const TABLES: &str = "
    create schema bench;
    create table bench.plain (
        position       bigint      generated always as identity primary key,
        created_at     timestamptz not null default clock_timestamp(),
        id             uuid        not null default gen_random_uuid(),
        topic          text        not null,
        key            text,
        payload        jsonb       not null,
        headers        jsonb       not null default '{}',
        organization   text,
        source         text,
        user_id        text,
        priority       integer     not null default 0,
        deliver_after  timestamptz,
        schema_version integer
    );
    create table bench.notifying (like bench.plain including all);
        create function bench.notify() returns trigger language plpgsql
        as $$ begin perform pg_notify('bench', ''); return null; end $$;
    create trigger notify after insert on bench.notifying for each statement execute function bench.notify();
    create table bench.captured (like bench.plain including all);
    select outbox.capture('bench.captured');
";

/// The same insert for each table. The database makes the id in every arm.
macro_rules! insert_into {
    ($table:literal) => {
        concat!(
            "insert into ",
            $table,
            " (topic, payload, source) values ('bench.orders.created', $2::text::jsonb, $1::uuid::text)"
        )
    };
}

const PUBLISH: &str = insert_into!("outbox.events");
const PLAIN: &str = insert_into!("bench.plain");
const NOTIFYING: &str = insert_into!("bench.notifying");
/// Inserts a row of the application; triggers make its event.
const CAPTURED: &str = insert_into!("bench.captured");

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let sizes = &stage.sizes;
    let figure = |what: &str, goal| {
        Figure::new(Row::PublishersTax, format!("{} writers, {what}", sizes.writers), "commits/s", goal)
    };
    let mut doorbell = figure("no relay", ">= 0.80");
    let mut relayed = figure("with a relay", "");
    let mut captured = figure("a captured row", "");
    let mut notifying = figure("for comparison: NOTIFY each", "");
    for _ in 0..sizes.rounds {
        let floor = one(stage, PLAIN, false).await?;
        doorbell.value.push(one(stage, PUBLISH, false).await?);
        relayed.value.push(one(stage, PUBLISH, true).await?);
        captured.value.push(one(stage, CAPTURED, false).await?);
        notifying.value.push(one(stage, NOTIFYING, false).await?);
        for figure in [&mut doorbell, &mut relayed, &mut captured, &mut notifying] {
            figure.floor.push(floor);
        }
    }
    Ok(report.print(FLOOR, &[doorbell, relayed, captured, notifying])?)
}

async fn one(stage: &Stage, statement: &'static str, with_relay: bool) -> anyhow::Result<f64> {
    let database = stage.database().await?;
    database.execute(TABLES).await?;
    let relay = if with_relay {
        database.subscribe_noop("noop").await?;
        Some(Running::start(&database, Permits::standard(), Noop::default()).await?)
    } else {
        None
    };
    let rate = closed_loop(&database.options, statement, stage.sizes.writers, stage.sizes.write_for).await?;
    if let Some(relay) = relay {
        relay.stop().await?;
    }
    stage.discard(database).await?;
    Ok(rate)
}
