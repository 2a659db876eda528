//! Fills the ring of a gateway from the stream.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    Nats,
    line::{Answer, Extent, Line},
    written::{self, Part},
};
use crate::{
    live::{
        feed::{Feed, LINGER, LOOK},
        payloads,
        ring::Batch,
    },
    relay::telemetry::chain,
    store::{Error, Stamp},
};

/// Interval of looking whether something is overdue.
const TICK: Duration = Duration::from_millis(500);
/// Pause before the feeder is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// What the feeder has said is in the stream must have come within this.
const COMES: Duration = Duration::from_secs(5);
/// A feeder writes more often than this. If nothing comes, this may be the stream no longer.
const SILENCE: Duration = Duration::from_secs(12);
/// A ring takes so many times as much memory as its messages, nearly.
const IN_MEMORY: u64 = 4;

/// Reads the stream for a feed.
#[derive(Debug)]
pub(in crate::live) struct Follower {
    settings: Arc<Nats>,
    /// Whether this process feeds the stream, and reports as a gateway for that.
    feeds: Arc<AtomicBool>,
    /// The last message that the ring has.
    reached: Mutex<Option<Reached>>,
}

#[derive(Debug, Clone, Copy)]
struct Reached {
    /// Of which stream.
    made: i128,
    sequence: u64,
}

/// One connection to the stream.
struct Following<'f> {
    feed: &'f Feed,
    line: Line,
    /// The last message that was taken, or the one before the first.
    reached: u64,
    /// The last message when this began.
    last: u64,
}

impl Follower {
    pub(in crate::live) fn new(settings: Arc<Nats>, feeds: Arc<AtomicBool>) -> Self {
        Self { settings, feeds, reached: Mutex::default() }
    }

    /// Fills the ring until there have been no clients for a while.
    ///
    /// # Errors
    /// Why it must begin again.
    pub(in crate::live) async fn follow(&self, feed: &Feed, stop: &CancellationToken) -> Result<(), String> {
        let line = Line::open(&self.settings).await?;
        let is_same = feed.look().await.map_err(failed)?;
        let extent = line.extent().await?;
        let known = *self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_same {
            *feed.ring() = None;
        }
        let known = known.filter(|known| {
            known.made == line.made && known.sequence <= extent.last && feed.ring().is_some()
        });
        let from = known.map_or_else(|| first(extent, feed.buffer), |known| known.sequence + 1);
        let mut following = Following { feed, line, reached: from - 1, last: extent.last };
        let ended = following.run(stop, from).await;
        let (made, sequence) = (following.line.made, following.reached);
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reached { made, sequence });
        ended?;
        if stop.is_cancelled() {
            return Ok(());
        }
        feed.forget();
        if self.feeds.load(Ordering::Acquire) {
            return Ok(());
        }
        feed.store.leave_gateway(&feed.name).await.map_err(failed)
    }
}

impl Following<'_> {
    async fn run(&mut self, stop: &CancellationToken, from: u64) -> Result<(), String> {
        let mut messages = self.line.messages(from).await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut looked, mut left) = (Instant::now(), None::<Instant>);
        let mut asking = Asking { question: None, number: 0, answer: None, next: looked, heard: looked };
        loop {
            asking.ask(self.feed, &self.line);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                lost = self.line.lost() => return Err(lost),
                message = messages.next() => {
                    let message = message.ok_or("the stream has ended")?;
                    let message = message.map_err(|error| format!("reading the stream: {error}"))?;
                    let sequence = message.info().map_err(|error| error.to_string())?.stream_sequence;
                    self.take(sequence, &message.payload).await?;
                    asking.heard = Instant::now();
                }
                answer = asking.answered() => asking.note(answer),
                () = self.feed.wake.notified() => {}
                _ = tick.tick() => {}
            }
            if let Some(question) = asking.is_answered(&self.line, self.reached)? {
                self.feed.answered.send_replace(question);
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                if !self.feed.look().await.map_err(failed)? {
                    return Err("the database was replaced or set back".to_owned());
                }
            }
            if *self.feed.clients().borrow() > 0 {
                left = None;
            } else if left.get_or_insert_with(Instant::now).elapsed() > LINGER {
                return Ok(());
            }
        }
    }

    /// Takes a message.
    async fn take(&mut self, sequence: u64, bytes: &[u8]) -> Result<(), String> {
        if sequence <= self.reached {
            return Ok(());
        }
        let part =
            written::read(bytes).map_err(|unfit| format!("message {sequence} of the stream: {unfit}"))?;
        if part.about.database != self.feed.here().map_err(|refusal| refusal.reason)?.database {
            // Of before the database was replaced; otherwise it was replaced now.
            if sequence >= self.last {
                let is_same = self.feed.look().await.map_err(failed)?;
                let here = self.feed.here().map_err(|refusal| refusal.reason)?;
                if here.database != part.about.database {
                    return Err(
                        "the stream has events of another database; each outbox needs a stream of its \
                                own (realtime.nats.stream), and one gateway at least must run"
                            .to_owned(),
                    );
                }
                if !is_same {
                    *self.feed.ring() = None;
                }
            } else {
                *self.feed.ring() = None;
                self.reached = sequence;
                return Ok(());
            }
        }
        let stamp = self.feed.here().map_err(|refusal| refusal.reason)?.stamp.clone();
        self.add(part, stamp).await.map_err(failed)?;
        self.reached = sequence;
        Ok(())
    }

    async fn add(&self, part: Part, stamp: Stamp) -> Result<(), Error> {
        let Part { about, events, unreadable } = part;
        if about.generation > self.feed.channels().generation {
            self.feed.load_channels().await?;
        }
        let mut events = payloads::complete(&self.feed.store, events, usize::MAX).await?;
        for one in &mut events {
            one.is_readable &= !unreadable.contains(&one.event.position);
        }
        let (before, at) = (about.mark.before.clone(), about.at());
        let batch = Batch::new(events, about.mark, at, stamp);
        let head = self.feed.head().ok().map(|(_, head, _)| head);
        let (mut is_news, is_missing) =
            (!batch.events.is_empty(), head.as_ref().is_some_and(|head| !head.is_same_place(&before)));
        if head.is_none() {
            self.feed.begin(before, at);
        } else if is_missing {
            tracing::warn!(
                "messages of the stream are missing; live clients read the log until they are past"
            );
            is_news = true;
            if let Some(ring) = self.feed.ring().as_mut() {
                ring.jump(before, at);
            }
        }
        let next = match self.feed.ring().as_mut() {
            Some(ring) => {
                ring.push(batch);
                ring.next()
            }
            None => return Ok(()),
        };
        if is_news {
            self.feed.progress.send_modify(|progress| progress.next = next);
        }
        Ok(())
    }
}

type Question = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;

/// The question of those who wait until everything is in the ring: one for all of them.
struct Asking {
    question: Option<Question>,
    /// Up to which of them it asks.
    number: u64,
    /// What it must wait for, and since when.
    answer: Option<(Answer, Instant)>,
    next: Instant,
    /// When something came from the stream or the feeder.
    heard: Instant,
}

impl Asking {
    /// Asks, if somebody waits, or after a silence: the answer says whether this is still the stream.
    fn ask(&mut self, feed: &Feed, line: &Line) {
        let asked = feed.asked.load(Ordering::Acquire);
        let is_wanted = asked > *feed.answered.borrow() || self.heard.elapsed() > SILENCE;
        if self.question.is_none() && self.answer.is_none() && is_wanted && self.next <= Instant::now() {
            self.number = asked;
            self.question = Some(Box::pin(line.ask()));
        }
    }

    /// The answer, when it is there.
    async fn answered(&mut self) -> Result<Answer, String> {
        match &mut self.question {
            Some(question) => question.await,
            None => std::future::pending().await,
        }
    }

    fn note(&mut self, answer: Result<Answer, String>) {
        self.question = None;
        match answer {
            Ok(answer) => {
                self.heard = Instant::now();
                self.answer = Some((answer, self.heard));
            }
            Err(why) => {
                tracing::debug!(why, "no gateway feeds the stream now, asking again");
                self.next = Instant::now() + AGAIN;
            }
        }
    }

    /// The number of the question, if the ring has all that its answer named.
    fn is_answered(&mut self, line: &Line, reached: u64) -> Result<Option<u64>, String> {
        let Some((answer, since)) = self.answer else { return Ok(None) };
        if answer.made != line.made {
            return Err("the stream was deleted and made again".to_owned());
        }
        if answer.sequence <= reached {
            self.answer = None;
            return Ok(Some(self.number));
        }
        if since.elapsed() > COMES {
            return Err(format!("message {} of the stream did not come", answer.sequence));
        }
        Ok(None)
    }
}

/// Where an empty ring begins: with as much of the stream as it takes.
fn first(extent: Extent, buffer: usize) -> u64 {
    let size = extent.bytes / extent.messages.max(1);
    let messages = (buffer as u64 / IN_MEMORY / size.max(1)).clamp(1, extent.messages.max(1));
    (extent.last + 1).saturating_sub(messages).max(extent.first).max(1)
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn failed(error: Error) -> String {
    chain(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_ring_begins_with_what_it_takes() {
        let extent = |first, last, bytes| Extent { first, last, messages: last + 1 - first, bytes };
        assert_eq!(first(extent(1, 0, 0), 1_000), 1, "nothing is there");
        assert_eq!(first(extent(1, 100, 1_000), 400), 91);
        assert_eq!(first(extent(95, 100, 60), 400), 95);
        assert_eq!(first(extent(1, 100, 1_000_000), 400), 100, "the last at least");
    }
}
