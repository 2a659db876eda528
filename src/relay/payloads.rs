//! Reads the events of deliveries that were leased without them, before their attempts. A crash here costs
//! what one in deliver costs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::{Shared, dispatch::Job};
use crate::{event::Event, store::Error};

/// Stands in for an event that has not been read, or is no longer in the log.
pub(super) fn missing_event(position: i64, created_at: DateTime<Utc>) -> Event {
    Event {
        id: uuid::Uuid::nil(),
        position,
        created_at,
        topic: String::new(),
        key: None,
        payload: String::new(),
        headers: String::new(),
        organization: None,
        source: None,
        user_id: None,
        schema_version: None,
    }
}

/// Reads the events of jobs that have none, without payloads larger than `largest` bytes.
pub(super) async fn read_events(shared: &Shared, jobs: &mut [Job], largest: i32) -> Result<(), Error> {
    let missing = || jobs.iter().filter(|job| !job.payload_read);
    let positions: HashSet<i64> = missing().map(|job| job.delivery.event.position).collect();
    if positions.is_empty() {
        return Ok(());
    }
    let times = || missing().map(|job| job.delivery.event.created_at);
    let mut span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
    for job in missing() {
        if let super::held::Held::Page(page, _) = &job.held {
            span = (span.0.min(page.span.0), span.1.max(page.span.1));
        }
    }
    let positions: Vec<i64> = positions.into_iter().collect();
    let loaded = shared.store.load_events(&positions, span, largest).await?;
    let events: HashMap<i64, (Arc<Event>, bool)> =
        loaded.into_iter().map(|(at, loaded)| (at, (Arc::new(loaded.event), loaded.payload_read))).collect();
    for job in jobs.iter_mut().filter(|job| !job.payload_read) {
        let stand_in = &job.delivery.event;
        let (event, read) = match events.get(&stand_in.position) {
            Some((event, read)) => (event.clone(), *read),
            None => (Arc::new(missing_event(stand_in.position, stand_in.created_at)), true),
        };
        job.payload_read = read;
        job.delivery.event = event;
    }
    Ok(())
}
