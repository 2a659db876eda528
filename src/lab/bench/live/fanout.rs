//! Events times clients in a second, while publishers commit as fast as they can.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Memory, Serving, crowd::Crowd, listener::Listener};
use crate::lab::bench::{
    Row, per_second,
    report::{Figure, Report},
    stage::{Database, Stage},
};

const FLOOR: &str =
    "the same bytes from memory to the same clients, with the same WebSocket library: no database";
/// Events of one transaction.
const BATCH: u32 = 100;
/// Time for everything to arrive.
const LIMIT: Duration = Duration::from_secs(300);

/// What the clients follow.
#[derive(Debug, Clone, Copy)]
enum By {
    /// All the same topics.
    Topics,
    /// The same events, each client by a filter of its own.
    Filters,
}

impl By {
    fn subscription(self, number: u32) -> String {
        let filter = match self {
            Self::Topics => String::new(),
            Self::Filters => format!(r#","filter":"payload.n > -{number}""#),
        };
        format!(r#"{{"type":"subscribe","id":"bench","topics":["bench.**"]{filter}}}"#)
    }
}

pub(in crate::lab::bench) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (clients, events) = (stage.sizes.live_clients, stage.sizes.live_events);
    let figure = |what: &str, goal| {
        Figure::new(Row::LiveFanout, format!("{clients} clients, {what}"), "events*cl/s", goal)
    };
    let mut figures = [
        (By::Topics, figure("the same topics", ">= 0.60")),
        (By::Filters, figure("a filter of its own each", "")),
    ];
    for _ in 0..stage.sizes.rounds {
        for (by, figure) in &mut figures {
            let (rate, texts) = gateway(stage, *by, clients, events).await?;
            figure.value.push(rate);
            figure.floor.push(memory(texts, clients).await?);
        }
    }
    Ok(report.print(FLOOR, &figures.map(|(_, figure)| figure))?)
}

/// Events times clients in a second, and the messages of one client.
async fn gateway(stage: &Stage, by: By, clients: u32, events: u32) -> anyhow::Result<(f64, Vec<String>)> {
    let database = stage.database().await?;
    let serving = Serving::start(&database).await?;
    let subscriptions = (0..clients).map(|number| Some(by.subscription(number))).collect();
    let crowd = Crowd::connect(serving.address, subscriptions).await?;
    // Each is subscribed, and has caught up.
    crowd.others(2 * u64::from(clients)).await?;
    let all = u64::from(clients) * u64::from(events);
    let began = Instant::now();
    publish(&database, events).await?;
    crowd.events(all, LIMIT).await?;
    let rate = per_second(all, began.elapsed());
    drop(crowd);
    let texts = texts(&serving, &by.subscription(0), events).await?;
    serving.stop().await?;
    stage.discard(database).await?;
    Ok((rate, texts))
}

/// The messages of all events, as a client is sent them that comes later.
async fn texts(serving: &Serving, subscription: &str, events: u32) -> anyhow::Result<Vec<String>> {
    let since = subscription.replacen('}', r#","since":"2020-01-01T00:00:00Z"}"#, 1);
    let client = Listener::connect(serving.address, Some(&since), true).await?;
    super::super::reach(|| client.events(), events.into(), LIMIT, "reading all events").await?;
    Ok(client.texts())
}

async fn memory(texts: Vec<String>, clients: u32) -> anyhow::Result<f64> {
    let serving = Memory::start().await?;
    let crowd = Crowd::connect(serving.address, vec![None; usize::try_from(clients)?]).await?;
    let all = u64::from(clients) * u64::try_from(texts.len())?;
    let batches = texts.chunks(usize::try_from(BATCH)?);
    let batches: Vec<_> = batches
        .map(|texts| Arc::new(texts.iter().map(|text| text.as_str().into()).collect::<Vec<_>>()))
        .collect();
    let began = Instant::now();
    for batch in batches {
        // An error means that a client has left, which is found by its missing events.
        let _ = serving.messages.send(batch);
    }
    crowd.events(all, LIMIT).await?;
    Ok(per_second(all, began.elapsed()))
}

/// Commits events, a few in each transaction.
async fn publish(database: &Database, events: u32) -> anyhow::Result<()> {
    let mut left = events;
    while left > 0 {
        let some = left.min(BATCH);
        database.insert(some).await?;
        left -= some;
    }
    Ok(())
}
