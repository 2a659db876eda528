//! Drains a backlog to a sink that does nothing: the cost of relay and database alone.

use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, Row as _};
use uuid::Uuid;

use super::{
    Row, per_second, reach,
    report::{Figure, Report},
    running::{Noop, Permits, Running},
    stage::{Database, SOON, Stage},
    within,
};
use crate::{
    delivery::ranges::Ranges,
    store::{ConnectionSettings, Store},
};

pub(super) const FLOOR: &str = "PostgreSQL alone: the relay's own statements on one connection with the \
                                relay's settings, pages of 1,000: load_cursor, read_page, \
                                advance_cursor, settle_pages; one subscription, nothing sent";
const LIMIT: Duration = Duration::from_secs(180);
/// Events in one step of the floor.
const PAGE: i64 = 1_000;

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let events = stage.sizes.noop_events;
    let both = [Permits::standard(), Permits::wide(2_048)];
    let figure = |permits: Permits| {
        Figure::new(Row::NoopDrain, format!("{events} events, {}", permits.label()), "events/s", ">= 0.50")
    };
    let mut figures = both.map(figure);
    for _ in 0..stage.sizes.rounds {
        let floor = floor(stage).await?;
        for (figure, permits) in figures.iter_mut().zip(both) {
            let database = stage.database().await?;
            database.subscribe_noop("noop").await?;
            database.fill(events).await?;
            let took = drain(&database, permits, events.into()).await?;
            figure.floor.push(floor);
            figure.value.push(per_second(events.into(), took));
            stage.discard(database).await?;
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// Starts a relay on a backlog and waits until this many deliveries are settled.
pub(super) async fn drain(
    database: &Database,
    permits: Permits,
    deliveries: u64,
) -> anyhow::Result<Duration> {
    let noop = Noop::default();
    let relay = Running::start(database, permits, noop.clone()).await?;
    reach(|| noop.count(), deliveries, LIMIT, "draining to a sink that does nothing").await?;
    database.settled().await?;
    let took = relay.since.elapsed();
    relay.stop().await?;
    Ok(took)
}

async fn floor(stage: &Stage) -> anyhow::Result<f64> {
    let events = stage.sizes.noop_events;
    let database = stage.database().await?;
    database.subscribe_noop("noop").await?;
    database.fill(events).await?;
    let took = alone(&database, events).await?;
    stage.discard(database).await?;
    Ok(per_second(events.into(), took))
}

/// Routes and settles a backlog with the relay's statements on one connection.
pub(super) async fn alone(database: &Database, events: u32) -> anyhow::Result<Duration> {
    let subscription: i64 =
        sqlx::query_scalar("select id from outbox.subscriptions").fetch_one(&database.pool).await?;
    let mut connection = connect(database).await?;
    let began = Instant::now();
    let settled = within(LIMIT, "PostgreSQL alone", async {
        let mut settled = 0;
        let mut window = None;
        loop {
            match step(&mut connection, subscription, &mut window).await? {
                0 => return anyhow::Ok(settled),
                some => settled += some,
            }
        }
    })
    .await?;
    let took = began.elapsed();
    anyhow::ensure!(settled == u64::from(events), "PostgreSQL alone settled {settled} events");
    connection.close().await?;
    Ok(took)
}

/// Connects with the relay's login and settings, so that plans are the same.
pub(super) async fn connect(database: &Database) -> anyhow::Result<PgConnection> {
    let options = database.relay_options.clone();
    let settings = ConnectionSettings {
        servers: options.clone().into(),
        relay: "bench".to_owned(),
        environment: crate::relay::Settings::default().environment,
        function_pool_size: 1,
        pool_size: 1,
        pooler: false,
        allow_superuser: false,
    };
    let store = within(SOON, "connecting", Store::connect(settings)).await?;
    let options = store.listener_servers(&options.into()).last().clone();
    store.close().await;
    within(SOON, "connecting", PgConnection::connect_with(&options)).await
}

/// The window of the backlog, fixed by the first step.
struct Window {
    end: String,
    page_after: i64,
    page_until: i64,
}

/// Routes and settles one page. Returns the number of events. Decodes only the columns it needs.
async fn step(
    connection: &mut PgConnection,
    subscription: i64,
    window: &mut Option<Window>,
) -> anyhow::Result<u64> {
    let token = Uuid::new_v4();
    let cursor = sqlx::query(sql!("relay/load_cursor")).bind(0_i64).fetch_one(&mut *connection).await?;
    let low: i64 = cursor.try_get("low")?;
    let low_xid: &str = cursor.try_get("low_xid")?;
    let step: i64 = cursor.try_get("step")?;
    if window.is_none() {
        let open_window = sqlx::query(sql!("relay/open_window"))
            .bind(low)
            .bind(Vec::<String>::new())
            .bind(cursor.try_get::<&str, _>("settled_xmax")?)
            .bind(low_xid);
        let row = open_window.fetch_one(&mut *connection).await?;
        *window = Some(Window {
            end: row.try_get("window_end")?,
            page_after: row.try_get("page_after")?,
            page_until: row.try_get("page_until")?,
        });
    }
    let window = window.as_mut().context("a window is open")?;
    let settled: &str = cursor.try_get("settled")?;
    let page = sqlx::query(sql!("relay/read_page"))
        .bind(settled)
        .bind(&window.end)
        .bind(window.page_after)
        .bind(window.page_until)
        .bind(PAGE)
        .bind(true)
        .bind(step)
        .bind(low)
        .bind(Vec::<String>::new())
        .bind(cursor.try_get::<&str, _>("settled_xmax")?)
        .bind(low_xid)
        .fetch_all(&mut *connection)
        .await?;
    let (mut positions, mut times): (Vec<i64>, Vec<DateTime<Utc>>) = (Vec::new(), Vec::new());
    for row in &page {
        // A row without an event contains only the snapshot.
        if let Some(position) = row.try_get("position")? {
            positions.push(position);
            times.push(row.try_get("created_at")?);
        }
    }
    let events = positions.len();
    if events == 0 {
        return Ok(0);
    }
    window.page_after = positions.last().copied().unwrap_or(window.page_until);
    let inserted = sqlx::query(sql!("relay/advance_cursor"))
        .bind(step)
        .bind(settled)
        .bind(low)
        .bind(&window.end)
        .bind(low)
        .bind(window.page_after)
        .bind(window.page_until)
        .bind(vec![0_i32])
        .bind(vec![subscription])
        .bind(vec![positions.into_iter().collect::<Ranges>().to_string()])
        .bind(token)
        .bind(10.0_f64)
        .bind("bench")
        .bind(Vec::<i64>::new())
        .bind(Vec::<String>::new())
        .bind(times.iter().min())
        .bind(times.iter().max())
        .bind(low)
        .bind(low_xid)
        .bind(low_xid)
        .bind(Vec::<i64>::new())
        .bind(Vec::<i64>::new())
        .bind(Vec::<DateTime<Utc>>::new())
        .bind(Vec::<i64>::new())
        .bind(Vec::<DateTime<Utc>>::new())
        .bind(Vec::<i32>::new())
        .bind(Vec::<i64>::new())
        .fetch_all(&mut *connection)
        .await?;
    let ids = inserted.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    let settle = sqlx::query(sql!("relay/settle_pages"))
        .bind(Vec::<i64>::new())
        .bind(Vec::<String>::new())
        .bind(ids)
        .bind(vec![token]);
    settle.fetch_all(connection).await?;
    Ok(u64::try_from(events)?)
}
