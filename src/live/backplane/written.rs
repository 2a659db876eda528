//! The messages of the stream: a part of the log each. Pure.

use std::sync::Arc;

use chrono::{DateTime, TimeZone as _, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    event::{Event, Position},
    live::ring::{Batch, LiveEvent},
    store::{Cursor, Mark, NewEvent},
};

/// The format that is written and read: the first byte of a message.
const FORMAT: u8 = 1;

/// A part of the log as it was read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) about: About,
    pub(super) events: Vec<NewEvent>,
    /// Positions of events with a payload that the database cannot read.
    pub(super) unreadable: Vec<Position>,
}

/// What a message says besides its events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct About {
    /// Fingerprint of the database.
    pub(super) database: u32,
    /// Value of `outbox.generation` when it was read.
    pub(super) generation: i64,
    /// When it was the newest part, in microseconds since 1970.
    at: i64,
    pub(super) mark: Mark,
}

/// An event in a message.
#[derive(Debug, Serialize, Deserialize)]
struct Written<'a> {
    id: [u8; 16],
    position: i64,
    created_at: i64,
    topic: &'a str,
    key: Option<&'a str>,
    payload: Payload<'a>,
    headers: &'a str,
    organization: Option<&'a str>,
    source: Option<&'a str>,
    user_id: Option<&'a str>,
    schema_version: Option<i32>,
    deliver_after: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Payload<'a> {
    Text(#[serde(borrow)] &'a str),
    /// Too large for a message: who wants it reads it from the log.
    LeftOut,
    /// The database cannot read it.
    Unreadable,
}

/// What is no message of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// Another version wrote it.
    #[error(
        "its format is {0}, and this version reads {FORMAT}: gateways of one stream must have the same version; \
         update them all, or give the new ones a stream of their own"
    )]
    Format(u8),
    /// Nobody's.
    #[error("it was not written by a gateway")]
    Broken,
}

impl About {
    /// A part without events, behind this cursor.
    pub(super) fn empty(database: u32, generation: i64, at: DateTime<Utc>, cursor: Cursor) -> Self {
        Self { database, generation, at: at.timestamp_micros(), mark: Mark::at(cursor) }
    }

    /// When it was the newest part.
    pub(super) fn at(&self) -> DateTime<Utc> {
        time(self.at)
    }

    /// The message without events.
    pub(super) fn write(&self) -> Message {
        Message { bytes: self.bytes(), behind: self.mark.after.clone() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend(postcard::to_allocvec(self).unwrap_or_default());
        bytes
    }
}

/// A message, and the cursor behind it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) behind: Arc<Cursor>,
}

/// A batch as messages of at most so many bytes each, in their order. Only what says which part of the log it
/// is may need more.
pub(super) fn write(batch: &Batch, generation: i64, most: usize) -> Vec<Message> {
    let about = |mark: Mark, last: Option<&LiveEvent>| About {
        database: batch.stamp.database,
        generation,
        at: last.map_or(batch.at, |last| last.event.created_at).timestamp_micros(),
        mark,
    };
    let (mut messages, mut mark) = (Vec::new(), Mark::clone(&batch.mark));
    let mut events = batch.events.as_slice();
    // What says which part it is, is hardly longer after a split.
    let room = most.saturating_sub(about(mark.clone(), None).bytes().len() + 256);
    while !events.is_empty() {
        let (mut bytes, mut count) = (Vec::new(), 0);
        for one in events {
            let mut event = one_of(one, false);
            if event.len() > room {
                event = one_of(one, true);
            }
            if count > 0 && bytes.len() + event.len() > room {
                break;
            }
            bytes.extend(event);
            count += 1;
        }
        let (some, others) = events.split_at(count);
        let last = some.last();
        let part = match last.filter(|_| !others.is_empty()) {
            Some(last) => {
                let (part, rest) = mark.clone().split(last.event.position);
                mark = rest;
                part
            }
            None => mark.clone(),
        };
        let about = about(part, last);
        messages.push(Message { bytes: [about.bytes(), bytes].concat(), behind: about.mark.after.clone() });
        events = others;
    }
    if messages.is_empty() {
        messages.push(about(mark, None).write());
    }
    messages
}

fn one_of(one: &LiveEvent, without_payload: bool) -> Vec<u8> {
    let event = &one.event;
    let payload = match (one.is_readable, without_payload) {
        (false, _) => Payload::Unreadable,
        (true, true) => Payload::LeftOut,
        (true, false) => Payload::Text(&event.payload),
    };
    let written = Written {
        id: *event.id.as_bytes(),
        position: event.position.0,
        created_at: event.created_at.timestamp_micros(),
        topic: &event.topic,
        key: event.key.as_deref(),
        payload,
        headers: &event.headers,
        organization: event.organization.as_deref(),
        source: event.source.as_deref(),
        user_id: event.user_id.as_deref(),
        schema_version: event.schema_version,
        deliver_after: one.deliver_after.map(|after| after.timestamp_micros()),
    };
    postcard::to_allocvec(&written).unwrap_or_default()
}

/// Reads a message.
pub(super) fn read(bytes: &[u8]) -> Result<Part, Unfit> {
    let (format, bytes) = bytes.split_first().ok_or(Unfit::Broken)?;
    if *format != FORMAT {
        return Err(Unfit::Format(*format));
    }
    let (about, mut rest) = postcard::take_from_bytes::<About>(bytes).map_err(|_| Unfit::Broken)?;
    let (mut events, mut unreadable) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (written, next) = postcard::take_from_bytes::<Written<'_>>(rest).map_err(|_| Unfit::Broken)?;
        rest = next;
        let payload = match written.payload {
            Payload::Text(text) => Some(text.to_owned()),
            Payload::LeftOut => None,
            Payload::Unreadable => {
                unreadable.push(Position(written.position));
                Some(String::new())
            }
        };
        events.push(NewEvent {
            payload_read: payload.is_some(),
            event: Event {
                id: Uuid::from_bytes(written.id),
                position: Position(written.position),
                created_at: time(written.created_at),
                topic: written.topic.to_owned(),
                key: written.key.map(ToOwned::to_owned),
                payload: payload.unwrap_or_default(),
                headers: written.headers.to_owned(),
                organization: written.organization.map(ToOwned::to_owned),
                source: written.source.map(ToOwned::to_owned),
                user_id: written.user_id.map(ToOwned::to_owned),
                schema_version: written.schema_version,
            },
            priority: 0,
            deliver_after: written.deliver_after.map(time),
            routed_early: false,
        });
    }
    Ok(Part { about, events, unreadable })
}

fn time(micros: i64) -> DateTime<Utc> {
    Utc.timestamp_micros(micros).single().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stamp;

    fn cursor() -> Cursor {
        Cursor::sample("100:100:")
    }

    fn batch(events: Vec<LiveEvent>) -> Batch {
        Batch::new(events, Mark::at(cursor()), time(5_000_007), Stamp::new(7, b""))
    }

    fn event(position: i64, payload: String, is_readable: bool) -> LiveEvent {
        let event = Event {
            id: Uuid::from_u128(3),
            created_at: time(1_800_000_000_000_123),
            key: Some("k".to_owned()),
            headers: "{\"a\": \"b\"}".to_owned(),
            organization: Some("acme".to_owned()),
            source: Some("shop".to_owned()),
            user_id: Some("u".to_owned()),
            schema_version: Some(2),
            payload,
            ..Event::sample(position)
        };
        LiveEvent::new(Arc::new(event), Some(time(1_900_000_000_000_001)), is_readable)
    }

    #[test]
    fn a_message_gives_back_its_events() {
        let batch = batch(vec![event(3, "{\"a\": 1.0}".to_owned(), true), event(5, String::new(), false)]);
        let messages = write(&batch, 12, 10_000);
        assert_eq!(messages.len(), 1);
        let part = read(&messages[0].bytes).unwrap();
        assert_eq!((part.about.database, part.about.generation), (7, 12));
        assert_eq!(part.about.at(), batch.events[1].event.created_at);
        assert_eq!(part.about.mark.before, batch.mark.before);
        assert_eq!(part.unreadable, [Position(5)]);
        for (read, written) in part.events.iter().zip(&batch.events) {
            assert_eq!((&read.event, read.deliver_after), (&*written.event, written.deliver_after));
            assert!(read.payload_read);
        }
    }

    #[test]
    fn no_message_is_too_large_and_a_payload_that_would_be_is_left_out() {
        let sizes = [10, 900, 2_000, 300, 0, 800, 800, 800, 5_000];
        let events = sizes.iter().zip(1..).map(|(size, position)| event(position, "x".repeat(*size), true));
        let messages = write(&batch(events.collect()), 1, 2_000);
        assert!(messages.len() > 3);
        let mut read_sizes = Vec::new();
        for message in messages {
            assert!(message.bytes.len() <= 2_000, "{}", message.bytes.len());
            let part = read(&message.bytes).unwrap();
            read_sizes
                .extend(part.events.iter().map(|read| read.payload_read.then_some(read.event.payload.len())));
        }
        assert_eq!(read_sizes, sizes.map(|size| (size < 1_000).then_some(size)));
    }

    #[test]
    fn a_quiet_stream_has_messages_without_events() {
        let messages = write(&batch(Vec::new()), 1, 10_000);
        assert_eq!(messages.len(), 1);
        let part = read(&messages[0].bytes).unwrap();
        assert!(part.events.is_empty());
        assert_eq!(part.about.at(), time(5_000_007));
    }

    #[test]
    fn what_another_version_or_somebody_else_wrote_is_refused() {
        let mut bytes = write(&batch(vec![event(3, "1".to_owned(), true)]), 1, 10_000).remove(0).bytes;
        bytes[0] = 2;
        assert!(read(&bytes).unwrap_err().to_string().contains("format is 2, and this version reads 1"));
        bytes[0] = 1;
        bytes.pop();
        assert_eq!(read(&bytes).unwrap_err(), Unfit::Broken);
        assert_eq!(read(b"").unwrap_err(), Unfit::Broken);
        assert_eq!(read(b"{}").unwrap_err(), Unfit::Format(b'{'));
    }
}
