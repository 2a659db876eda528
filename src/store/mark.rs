//! A part of the log between two cursors.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cursor::{Advance, Cursor, Low, Reached};
use crate::event::Position;

/// The two ends of a part of the log, and so each place between them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    /// The cursor before it.
    #[serde(with = "shared")]
    pub before: Arc<Cursor>,
    /// The cursor behind it.
    #[serde(with = "shared")]
    pub after: Arc<Cursor>,
    reached: Reached,
    /// Position of its last event.
    last: Option<Position>,
    /// Position of the last event that was read with it: also what was cut off is behind the cursors.
    until: Option<Position>,
    low: Low,
}

impl Mark {
    /// A part behind a cursor, as it was read: how far, and with which event as its last.
    pub(super) fn new(before: Arc<Cursor>, reached: Reached, last: Option<Position>, low: Low) -> Self {
        let after = Arc::new(before.next(&reached, last, Advance::All).with_low(&low));
        Self { before, after, reached, last, until: last, low }
    }

    /// A part without events, behind this cursor.
    #[must_use]
    pub fn at(cursor: Cursor) -> Self {
        let reached = Reached::Everything { snapshot: cursor.settled.clone() };
        let low = cursor.low.clone().unwrap_or_else(Low::none);
        let cursor = Arc::new(cursor);
        Self { before: cursor.clone(), after: cursor, reached, last: None, until: None, low }
    }

    /// The cursor behind the event at this position, which is one of this part.
    #[must_use]
    pub fn behind(&self, position: Position) -> Cursor {
        if self.last.is_none_or(|last| last <= position) {
            return Cursor::clone(&self.after);
        }
        self.before.next(&self.reached, self.until, Advance::UpTo(position)).with_low(&self.low)
    }

    /// Whether a cursor lies in this part: how far it has read, if so.
    #[must_use]
    pub fn contains(&self, cursor: &Cursor) -> Option<Position> {
        if cursor.settled == self.before.settled && cursor.window.is_none() && self.before.window.is_none() {
            return Some(Position(i64::MIN));
        }
        let window = cursor.window.as_ref()?;
        let (end, from) = match &self.reached {
            Reached::Everything { snapshot } => (snapshot, Position(i64::MIN)),
            Reached::Page { window, .. } => (&window.end, window.page_after),
        };
        let is_between = window.page_after >= from && self.last.is_some_and(|last| window.page_after < last);
        (cursor.settled == self.before.settled && window.end == *end && is_between)
            .then_some(window.page_after)
    }

    /// Keeps the part up to this position only: what follows is read again.
    #[must_use]
    pub fn cut(self, position: Position) -> Self {
        Self { after: Arc::new(self.behind(position)), last: Some(position), ..self }
    }

    /// The part up to this position, and the part behind it.
    #[must_use]
    pub fn split(self, position: Position) -> (Self, Self) {
        let first = self.clone().cut(position);
        let reached = match (self.reached, first.after.window.clone()) {
            (Reached::Everything { .. }, Some(window)) => {
                Reached::Page { upto: window.page_until, window, last: true }
            }
            (Reached::Page { upto, last, .. }, Some(window)) => Reached::Page { window, upto, last },
            // Nothing is behind the last event.
            (reached, None) => reached,
        };
        let rest = Self { before: first.after.clone(), reached, ..self };
        (first, rest)
    }
}

/// A cursor that others hold, too.
mod shared {
    use super::{Arc, Cursor, Deserialize as _, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer>(cursor: &Arc<Cursor>, to: S) -> Result<S::Ok, S::Error> {
        cursor.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Arc<Cursor>, D::Error> {
        Cursor::deserialize(from).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::cursor::Window;

    fn low() -> Low {
        Low { position: Position(1), xid: "9".to_owned() }
    }

    /// Parts with events at 3, 5 and 9: all that was new, a page of a window, and its last page.
    fn parts_of_a_log() -> Vec<Mark> {
        let begin = Cursor::at("10:10:".to_owned(), low());
        let window = Window {
            end: "20:22:20".to_owned(),
            low: Some(low()),
            page_after: Position(2),
            page_until: Position(30),
        };
        let inside = Cursor { window: Some(window.clone()), ..begin.clone() };
        let all = Reached::Everything { snapshot: "20:20:".to_owned() };
        let page = |last| Reached::Page { window: window.clone(), upto: Position(9), last };
        let parts = [(begin, all), (inside.clone(), page(false)), (inside, page(true))];
        parts.map(|(before, reached)| Mark::new(Arc::new(before), reached, Some(Position(9)), low())).into()
    }

    #[test]
    fn a_cursor_in_a_window_is_not_before_those_behind_the_window() {
        let begin = Cursor::at("10:10:".to_owned(), low());
        let behind = Cursor::at("20:22:20".to_owned(), low());
        let later = Cursor::at("23:23:".to_owned(), low());
        for inside in parts_of_a_log().iter().map(|mark| &*mark.before).filter(|cursor| cursor.has_window()) {
            assert!(begin.is_before(inside) && inside.is_before(&later));
            assert!(!inside.is_before(&behind) && !behind.is_before(inside));
        }
    }

    #[test]
    fn each_place_of_a_part_is_the_same_in_its_halves_and_after_it_was_written() {
        for mark in parts_of_a_log() {
            let written = postcard::to_allocvec(&mark).unwrap();
            let read: Mark = postcard::from_bytes(&written).unwrap();
            let places = [3, 4, 5, 9].map(|position| mark.behind(Position(position)));
            assert_eq!([3, 4, 5, 9].map(|position| read.behind(Position(position))), places);
            let (cut, _) = read.clone().split(Position(5));
            assert_eq!([3, 4, 5].map(|position| cut.behind(Position(position))), places[..3]);
            let (first, rest) = read.split(Position(3));
            assert_eq!((&first.before, &rest.after), (&mark.before, &mark.after));
            assert_eq!((&*first.after, &*rest.before), (&places[0], &places[0]));
            assert_eq!(first.behind(Position(3)), places[0]);
            assert_eq!([4, 5, 9].map(|position| rest.behind(Position(position))), places[1..]);
            let (most, _) = rest.clone().split(Position(5));
            assert_eq!([4, 5].map(|position| most.behind(Position(position))), places[1..3]);
            let (second, third) = rest.split(Position(5));
            assert_eq!(
                (&*second.before, &*second.after, &*third.before),
                (&places[0], &places[2], &places[2])
            );
            assert_eq!((third.behind(Position(9)), third.after), (places[3].clone(), mark.after));
        }
    }
}
