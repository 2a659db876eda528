//! Reads the payloads that a page of the log lacks, and makes batches.

use std::sync::Arc;

use super::ring::{Batch, LiveEvent};
use crate::{
    event::Position,
    store::{Error, Here, NewEvent, Store, Stretch},
};

/// Bytes of the payloads of one batch, and one payload.
const MOST: usize = 4 * 1024 * 1024;
/// Large payloads that are read at once.
const LARGE_AT_ONCE: usize = 16;

/// A batch of what was read. If its payloads are large, it ends early.
///
/// # Errors
/// Those of the database.
pub(super) async fn batch(store: &Store, stretch: Stretch, here: &Here) -> Result<Batch, Error> {
    let Stretch { events, mut mark, .. } = stretch;
    let all = events.len();
    let events = complete(store, events, MOST).await?;
    let last = events.last().map(|last| &last.event);
    if let Some(last) = last.filter(|_| events.len() < all) {
        mark = mark.cut(last.position);
    }
    let at = last.map_or_else(|| here.time(), |last| last.created_at);
    Ok(Batch::new(events, mark, at, here.stamp.clone()))
}

/// The first of these events with their payloads: all, or as many as have so many bytes.
///
/// # Errors
/// Those of the database.
pub(super) async fn complete(
    store: &Store,
    events: Vec<NewEvent>,
    most: usize,
) -> Result<Vec<LiveEvent>, Error> {
    let mut ready = Vec::with_capacity(events.len());
    let mut bytes = 0;
    let mut rest = events.into_iter().peekable();
    while let Some(next) = rest.next() {
        if next.payload_read {
            bytes += next.event.payload.len();
            ready.push(LiveEvent::new(Arc::new(next.event), next.deliver_after, true));
        } else {
            let mut some = vec![next];
            while some.len() < LARGE_AT_ONCE
                && let Some(next) = rest.next_if(|next| !next.payload_read)
            {
                some.push(next);
            }
            let loaded = load(store, some).await?;
            bytes += loaded.iter().map(|one| one.event.payload.len()).sum::<usize>();
            ready.extend(loaded);
        }
        if bytes > most {
            break;
        }
    }
    Ok(ready)
}

async fn load(store: &Store, some: Vec<NewEvent>) -> Result<Vec<LiveEvent>, Error> {
    let positions: Vec<Position> = some.iter().map(|new| new.event.position).collect();
    let times = || some.iter().map(|new| new.event.created_at);
    let span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
    let mut loaded = store.load_events(&positions, span, i32::MAX).await?;
    let ready = some.into_iter().map(|new| {
        // What was removed since comes without a payload, and so it cannot be read.
        let found = loaded.events.remove(&new.event.position);
        let is_readable = found.is_some();
        let event = found.map_or(new.event, |found| found.event);
        LiveEvent::new(Arc::new(event), new.deliver_after, is_readable)
    });
    Ok(ready.collect())
}
