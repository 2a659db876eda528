//! A transaction that has published stays open while millions of events are routed. What was routed meanwhile
//! should cost the next ones nothing, and its own event is delivered when it commits.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::{
    Row, per_second, reach,
    report::{Figure, Report},
    running::{Noop, Permits, Running},
    stage::{Database, SOON, Stage},
    within,
};

const FLOOR: &str = "the same, when hardly anything has been routed under the open transaction";
const LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (events, some) = (stage.sizes.held_events, stage.sizes.held_backlog);
    let metric = format!("{some} events after {events} under an open transaction");
    let mut figure = Figure::new(Row::HeldLog, metric, "events/s", ">= 0.90");
    for _ in 0..stage.sizes.rounds {
        let database = stage.database().await?;
        database.subscribe_noop("noop").await?;
        let noop = Noop::default();
        let relay = Running::start(&database, Permits::standard(), noop.clone()).await?;
        let mut holder = within(SOON, "connecting", PgConnection::connect_with(&database.options)).await?;
        let opening = sqlx::raw_sql("begin; select outbox.publish('bench.late', '{}')").execute(&mut holder);
        within(SOON, "publishing in a transaction that stays open", opening).await?;

        let mut sent = u64::from(some);
        database.fill(some).await?;
        reach(|| noop.count(), sent, LIMIT, "warming up").await?;
        figure.floor.push(drained(&database, &noop, some, &mut sent).await?);
        sent += u64::from(events);
        database.fill(events).await?;
        reach(|| noop.count(), sent, LIMIT, "draining under an open transaction").await?;
        database.settled().await?;
        figure.value.push(drained(&database, &noop, some, &mut sent).await?);

        within(SOON, "committing", sqlx::raw_sql("commit").execute(&mut holder)).await?;
        reach(|| noop.count(), sent + 1, SOON, "waiting for the event of the open transaction").await?;
        holder.close().await?;
        relay.stop().await?;
        stage.discard(database).await?;
    }
    Ok(report.print(FLOOR, &[figure])?)
}

/// Events a second, of so many that are committed at once.
async fn drained(database: &Database, noop: &Noop, events: u32, sent: &mut u64) -> anyhow::Result<f64> {
    *sent += u64::from(events);
    let committed = database.fill_at_once(events).await?;
    reach(|| noop.count(), *sent, LIMIT, "draining a backlog").await?;
    Ok(per_second(events.into(), committed.elapsed()))
}
