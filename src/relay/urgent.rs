//! Urgent events (priority above 0) overtake what waits in the log. While routing is behind, they are looked
//! for along an index of their own, and become rows of `outbox.deliveries`, which are claimed first. Routing
//! passes them later. A crash here costs nothing: an event is routed early in the commit that says so.

use std::time::{Duration, Instant};

use super::{
    crash, hints,
    matching::MatchCache,
    pauses,
    reload::Reload,
    route::{Route, Step},
};
use crate::{
    delivery::SubscriptionId,
    store::{Error, Looked, NewDelivery, NewEvent},
    subscription::Index,
};

/// Events routed early in one step at most.
const AT_ONCE: usize = 500;
/// Pairs of an event and a subscription in one step. One event may have more.
const PAIRS: usize = 16_384;
/// Shortest time between two looks.
const EVERY: Duration = Duration::from_millis(20);
/// Time until the next look after one that asked for too much.
const REST: Duration = Duration::from_secs(10);

/// What is known of urgent events while routing is behind.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Where the next look begins; none: at the cursor.
    looked: Option<Looked>,
    looked_at: Option<Instant>,
}

impl Route {
    /// Routes urgent events before their turn, if routing is behind after this step.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn route_urgent(&mut self, reload: &mut Reload, step: Step) -> Result<(), Error> {
        if !self.is_behind(step) {
            self.early.looked = None;
            return Ok(());
        }
        let now = Instant::now();
        if self.early.looked_at.is_some_and(|then| now.duration_since(then) < EVERY) {
            return Ok(());
        }
        self.early.looked_at = Some(now);
        let cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => self.base.store.load_cursor(0).await?,
        };
        let index = self.base.index.load_full();
        let store = &self.base.store;
        let looked = self.early.looked.as_ref();
        let read = store.read_urgent(&cursor, looked, AT_ONCE, index.needs_payload()).await;
        let mut read = match read {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.overtaken();
                return Ok(());
            }
            Err(error) if error.asks_for_less() => {
                // One of them cannot be read, or it took too long: routing comes to them in their turn.
                self.early.looked_at = Some(now + REST);
                self.cursor = Some(cursor);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if read.events.is_empty() {
            self.early.looked = read.looked;
            self.cursor = Some(cursor);
            return Ok(());
        }
        self.base.news.are_there();
        if read.generation > index.generation {
            reload.load().await?;
        }
        if !self.sending.pauses.are_known(read.newest_pause) {
            pauses::load(&self.base, &self.sending, &self.waiting).await?;
        }
        let index = self.base.index.load_full();
        // What is past for a subscription that begins earlier is fixed by a step of routing. Until then it
        // would get an urgent event twice.
        if index.starting().any(|id| !self.fixed.contains(&id)) {
            self.cursor = Some(cursor);
            return Ok(());
        }
        let mut matches = MatchCache::default();
        matches.evaluate(&self.base.store, &index, &read.events).await?;
        let (count, deliveries) = plan(&index, &matches, &read.events);
        if count < read.events.len() {
            read.events.truncate(count);
            read.looked = None;
        }
        // A page that was read before would have them again.
        self.ahead = None;
        let routed = self.base.store.route_early(&cursor, &read.events, &deliveries).await?;
        let Some(next) = routed else {
            self.overtaken();
            return Ok(());
        };
        crash::point(crash::Point::RoutedEarly);
        self.cursor = Some(next);
        self.early.looked = read.looked;
        let (errors, telemetry) = (&self.counted.filter_errors, &self.base.telemetry);
        matches.settle(errors, telemetry, &index, read.events.iter());
        self.note_timed(&deliveries);
        let elsewhere = self.due_elsewhere(&deliveries);
        hints::tell(&self.base, hints::Place::Rows, &elsewhere).await;
        // The events are counted when routing comes to them.
        self.base.telemetry.routed(0, deliveries.len());
        Ok(())
    }

    /// Whether events may wait in the log.
    fn is_behind(&self, step: Step) -> bool {
        step == Step::NoRoom || self.cursor.as_ref().is_some_and(crate::store::Cursor::has_window)
    }
}

/// How many of these events are routed in one step, from the first, and the deliveries that are made of them.
/// Conditions that are not decided are evaluated before the attempt.
fn plan(index: &Index, matches: &MatchCache, events: &[NewEvent]) -> (usize, Vec<NewDelivery>) {
    let mut deliveries = Vec::new();
    for (at, new) in events.iter().enumerate() {
        let position = new.event.position;
        let ids: Vec<SubscriptionId> = if index.is_choosy() {
            matches.wanted_by(position).iter().chain(matches.undecided(position)).copied().collect()
        } else {
            index.matching(&new.event).iter().map(|one| one.row.id).collect()
        };
        if at > 0 && deliveries.len() + ids.len() > PAIRS {
            return (at, deliveries);
        }
        deliveries.extend(ids.into_iter().map(|subscription| NewDelivery {
            position,
            created_at: new.event.created_at,
            subscription,
            deliver_after: new.deliver_after,
            priority: new.priority,
        }));
    }
    (events.len(), deliveries)
}
