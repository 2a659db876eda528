//! Time from commit to receipt of one subscription beside others that hang, and beside the backlog of another
//! organization. The same load is measured without them.

use std::time::Duration;

use anyhow::Context;

use super::{
    Row,
    latency::percentile,
    reach,
    receiving::Receiving,
    report::{Figure, Report},
    running::{Permits, Running},
    stage::{Database, SOON, Stage},
    within,
    writers::{Load, open_loop},
};

const FLOOR: &str =
    "the same load and the same subscriptions, all of which answer; for the backlog: without it";
/// Publishes an event of an organization for the measured subscription and those that hang.
const PUBLISH: &str = "insert into outbox.events (id, topic, payload, organization) \
                       values ($1, 'bench.orders.created', $2::text::jsonb, 'ours')";
const WARM_UP: Load = Load { rate: 10, writers: 1, events: 20 };

/// What the measured subscription runs beside.
#[derive(Debug, Clone, Copy)]
enum Beside {
    /// So many subscriptions of all events, created before it.
    Hanging(u32),
    /// So many events of another organization, whose subscription answers after a second. They are committed
    /// before the relay starts.
    Backlog(u32),
}

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let backlog = stage.sizes.webhook_events.min(20_000);
    let load = Load { rate: 10, writers: 1, events: stage.sizes.idle_events };
    let mut figures = Vec::new();
    for (beside, goal) in [
        (Beside::Hanging(4), "<= 1.5"),
        (Beside::Hanging(stage.sizes.hanging), "<= 1.5"),
        (Beside::Backlog(backlog), "<= 2"),
    ] {
        let (name, first) = match beside {
            Beside::Hanging(count) => (format!("{count} of {} hang", count.max(9) + 1), "first 2 s"),
            Beside::Backlog(events) => (format!("another's backlog of {events}"), "routed behind it"),
        };
        let mut later = Figure::new(Row::Isolation, format!("{name}, p99"), "ms", goal);
        let mut slowest = Figure::new(Row::Isolation, format!("{name}, {first}"), "ms", "");
        for _ in 0..stage.sizes.rounds {
            let alone = waits(stage, beside, false, load).await?;
            let together = waits(stage, beside, true, load).await?;
            later.floor.push(percentile(&alone.later, 0.99));
            later.value.push(percentile(&together.later, 0.99));
            slowest.floor.push(percentile(&alone.first, 1.0));
            slowest.value.push(percentile(&together.first, 1.0));
        }
        figures.extend([later, slowest]);
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// Times from commit to receipt, ascending.
struct Waits {
    /// Of the first events after the relay was started.
    first: Vec<Duration>,
    later: Vec<Duration>,
}

async fn waits(stage: &Stage, beside: Beside, is_bad: bool, load: Load) -> anyhow::Result<Waits> {
    let database = stage.database().await?;
    let (good, answering) = (Receiving::recording()?, Receiving::counting()?);
    let hanging = Receiving::delayed(Duration::from_secs(60))?;
    let slow = Receiving::delayed(Duration::from_secs(1))?;
    if let Beside::Hanging(count) = beside {
        for number in 0..count.max(9) {
            let url = if is_bad && number < count { &hanging.url } else { &answering.url };
            database.subscribe_webhook_of(&format!("other-{number}"), url, "ours").await?;
        }
    }
    database.subscribe_webhook_of("good", &good.url, "ours").await?;
    if let Beside::Backlog(events) = beside {
        database.subscribe_webhook_of("theirs", &slow.url, "theirs").await?;
        if is_bad {
            fill(&database, events).await?;
        }
    }
    let relay = Running::start(&database, Permits::standard(), stage.webhook()?).await?;
    let first = sent(&database, &good, WARM_UP).await?;
    let later = sent(&database, &good, load).await?;
    if let Beside::Backlog(events) = beside {
        let delivered = slow.events();
        let lasted = !is_bad || delivered < u64::from(events);
        anyhow::ensure!(lasted, "the backlog was delivered before the end of the measurement");
    }
    relay.abort().await;
    stage.discard(database).await?;
    Ok(Waits { first, later })
}

/// Publishes at a given rate, and waits until all of it has arrived.
async fn sent(database: &Database, good: &Receiving, load: Load) -> anyhow::Result<Vec<Duration>> {
    let before = good.events();
    let publishing = open_loop(&database.options, PUBLISH, load);
    let sent = within(SOON * 5, "publishing at a given rate", publishing).await?;
    let all = before + u64::from(load.events);
    reach(|| good.events(), all, SOON, "waiting for the published events").await?;
    let waits = sent.into_iter().map(|(event, since)| {
        let arrival = good.arrival(event).context("an event did not arrive")?;
        Ok(arrival.saturating_duration_since(since))
    });
    let mut waits: Vec<Duration> = waits.collect::<anyhow::Result<_>>()?;
    waits.sort_unstable();
    Ok(waits)
}

/// Commits events of another organization.
async fn fill(database: &Database, events: u32) -> anyhow::Result<()> {
    let insert = sqlx::query(
        "insert into outbox.events (topic, payload, organization) \
         select 'bench.orders.created', jsonb_build_object('n', n, 'padding', repeat('x', 225)), 'theirs' \
           from generate_series(1, $1) as n",
    )
    .bind(i32::try_from(events)?)
    .execute(&database.pool);
    within(SOON, "writing a backlog", insert).await.map(drop)
}
