//! Reads the events of deliveries that were leased without them, before their attempts. A crash here costs
//! what one in deliver costs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{delivery::Content, dispatch::Job};
use crate::{
    event::Position,
    store::{Error, Store},
};

/// Reads what is missing of the events of jobs, without payloads larger than `largest` bytes.
pub(super) async fn read_events(store: &Store, jobs: &mut [Job], largest: i32) -> Result<(), Error> {
    let unread = || jobs.iter().filter(|job| !job.delivery.content.is_read());
    let positions: HashSet<Position> = unread().map(|job| job.delivery.position).collect();
    if positions.is_empty() {
        return Ok(());
    }
    let times = || unread().map(|job| job.delivery.created_at);
    let mut span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
    for job in unread() {
        if let super::held::Held::Page(page, _) = &job.held {
            span = (span.0.min(page.span.0), span.1.max(page.span.1));
        }
    }
    let positions: Vec<Position> = positions.into_iter().collect();
    let loaded = store.load_events(&positions, span, largest).await?;
    let contents: HashMap<Position, Content> = loaded
        .events
        .into_iter()
        .map(|(at, loaded)| (at, Content::new(Arc::new(loaded.event), loaded.payload_read)))
        .collect();
    for job in jobs.iter_mut().filter(|job| !job.delivery.content.is_read()) {
        job.delivery.content = contents.get(&job.delivery.position).cloned().unwrap_or(Content::Missing);
        if let Some(event) = job.delivery.event() {
            job.delivery.created_at = event.created_at;
        }
    }
    Ok(())
}
