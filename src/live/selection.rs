//! What one subscription of a client wants, and the messages that it is sent. Clients with the same wish
//! share a selection, and its messages are made once.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::extract::ws::Utf8Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;

use super::{
    caller::Caller,
    message::{Code, Refusal, error_message},
    ring::{Batch, LiveEvent},
};
use crate::{
    event::{Event, filter::Facts, topic::Trie, types::Types},
    sink::Outgoing,
    subscription::{Subscription, Wanted},
};

/// Which selection it is.
pub(super) type SelectionId = u64;

/// Messages of a piece are made within this, if nothing is unusual about the selection.
const QUICK: Duration = Duration::from_millis(2);

/// How messages are written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON with the client's name for the subscription.
    Message {
        /// That name.
        id: String,
    },
    /// Server-sent events.
    ServerSent,
}

/// A message, ready to be sent.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its text.
    pub text: Utf8Bytes,
    /// The token of the event; none: it says something else.
    pub token: Option<Arc<str>>,
}

/// The messages of some events of a batch.
#[derive(Debug)]
pub(super) struct Piece {
    /// Each with the number of its event.
    pub(super) frames: Vec<(usize, Frame)>,
    /// Number of the first event behind them.
    pub(super) end: usize,
}

/// What a subscription of a client wants.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) id: SelectionId,
    pub(super) subscription: Arc<Subscription>,
    pub(super) format: Format,
    types: Arc<Types>,
    /// The only organization whose events it may contain; none: all.
    organization: Option<String>,
    /// The only topics that it may contain; none: all.
    allowed: Option<Trie<()>>,
    /// The same as text.
    allowed_patterns: Option<Vec<String>>,
    is_channel: bool,
    since: Option<DateTime<Utc>>,
    /// Whether it is known that its messages are made quickly.
    is_quick: AtomicBool,
    /// Whether they took long once.
    is_slow: AtomicBool,
}

/// What makes two selections the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    /// The topics, keys and filter, or the channel and the generation at which it was read.
    pub(super) what: String,
    /// What the caller may see.
    pub(super) scope: String,
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) format: Format,
}

/// All selections that clients have now.
#[derive(Debug, Default)]
pub(super) struct Selections {
    known: Mutex<HashMap<Wish, Weak<Selection>>>,
    next: AtomicU64,
}

impl Selections {
    /// The selection for this wish, made if no client has it.
    pub(super) fn get(
        &self,
        wish: Wish,
        caller: &Caller,
        make: impl FnOnce() -> Result<(Arc<Subscription>, Arc<Types>, bool), Refusal>,
    ) -> Result<Arc<Selection>, Refusal> {
        let find = |known: &HashMap<Wish, Weak<Selection>>| known.get(&wish).and_then(Weak::upgrade);
        if let Some(selection) = find(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(selection);
        }
        let (subscription, types, is_channel) = make()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(selection) = find(&known) {
            return Ok(selection);
        }
        if known.len() >= 64 && known.len().is_power_of_two() {
            known.retain(|_, selection| selection.strong_count() > 0);
        }
        let is_quick = !subscription.is_choosy() && subscription.transform.is_none();
        let selection = Arc::new(Selection {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            subscription,
            format: wish.format.clone(),
            types,
            organization: caller.organization().map(ToOwned::to_owned),
            allowed: allowed(caller).filter(|_| !is_channel),
            allowed_patterns: allowed_patterns(caller).filter(|_| !is_channel),
            is_channel,
            since: wish.since,
            is_quick: AtomicBool::new(is_quick),
            is_slow: AtomicBool::new(false),
        });
        known.insert(wish, Arc::downgrade(&selection));
        Ok(selection)
    }
}

/// Who takes long takes turns: one after the other, channels apart from what clients ask for themselves.
#[derive(Debug)]
pub(super) struct Turns {
    channels: Arc<Semaphore>,
    clients: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { channels: Arc::new(Semaphore::new(1)), clients: Arc::new(Semaphore::new(1)) }
    }
}

impl Turns {
    fn of(&self, is_channel: bool) -> Arc<Semaphore> {
        if is_channel { self.channels.clone() } else { self.clients.clone() }
    }
}

impl Selection {
    /// The messages of a batch from this event on: those of a piece, or fewer if they are more than so many
    /// bytes. If several clients have the selection and `keep` is set, they are made once for all of them.
    ///
    /// A filter may be as much work as any filter may be, for each event. Those that take long are evaluated
    /// on a thread of their own, one piece of one client at a time, and other clients do not wait.
    pub(super) async fn piece(
        self: &Arc<Self>,
        batch: &Arc<Batch>,
        from: usize,
        keep: bool,
        most: usize,
        slow: &Turns,
    ) -> Arc<Piece> {
        let keep = keep && Arc::strong_count(self) > 1;
        if let Some(piece) = keep.then(|| batch.made(self.id, from)).flatten() {
            return piece;
        }
        let all = batch.piece(from);
        let (events, most) = if keep { (all, usize::MAX) } else { (from..all.end, most) };
        let piece = if self.is_quick.load(Ordering::Relaxed) {
            self.frames(batch, events, most)
        } else {
            let turn = slow.of(self.is_channel).acquire_owned().await;
            let (own, batch) = (self.clone(), batch.clone());
            let making = move || {
                // Also when nobody waits for it any more.
                let _turn = turn;
                own.frames(&batch, events, most)
            };
            match tokio::task::spawn_blocking(making).await {
                Ok(piece) => piece,
                Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                // The process ends.
                Err(_) => std::future::pending().await,
            }
        };
        let piece = Arc::new(piece);
        if keep {
            batch.keep(self.id, from, &piece);
        }
        piece
    }

    fn frames(&self, batch: &Batch, events: Range<usize>, most: usize) -> Piece {
        let mut evaluated = false;
        let (mut piece, mut bytes, began) =
            (Piece { frames: Vec::new(), end: events.end }, 0, Instant::now());
        for (index, one) in batch.events.iter().enumerate().take(events.end).skip(events.start) {
            if bytes >= most {
                piece.end = index;
                break;
            }
            if self.since.is_some_and(|since| one.event.created_at < since) || !self.concerns(one) {
                continue;
            }
            evaluated = true;
            if let Some(frame) = self.made(one, || batch.token(one)) {
                bytes += frame.text.len();
                piece.frames.push((index, frame));
            }
        }
        // It stays slow: what is quick for these events may take long for others.
        if evaluated && !self.is_plain() {
            let is_slow = self.is_slow.fetch_or(began.elapsed() > QUICK, Ordering::Relaxed);
            self.is_quick.store(!is_slow && began.elapsed() <= QUICK, Ordering::Relaxed);
        }
        piece
    }

    /// Whether it has no expression at all.
    fn is_plain(&self) -> bool {
        !self.subscription.is_choosy() && self.subscription.transform.is_none()
    }

    /// The message for an event, with this token; none: the client does not want it, or may not see it.
    pub(super) fn frame_with(&self, one: &LiveEvent, token: impl FnOnce() -> Arc<str>) -> Option<Frame> {
        if self.concerns(one) { self.made(one, token) } else { None }
    }

    fn made(&self, one: &LiveEvent, token: impl FnOnce() -> Arc<str>) -> Option<Frame> {
        let left_out = |code, why: &str| {
            // What a channel is made of is its operator's business.
            let shown = if self.is_channel && code == Code::FilterFailed {
                tracing::debug!(channel = &*self.subscription.name, event = %one.event.id, why, "left out");
                "the filter or the transform of the channel cannot be evaluated"
            } else {
                why
            };
            let reason = format!("{shown}; the event {} is left out", one.event.id);
            Some(self.format.error(&Refusal::new(code, reason)))
        };
        if !one.is_readable {
            return left_out(Code::UnreadableEvent, "the payload cannot be read");
        }
        match self.subscription.evaluate(&Facts::new(&one.event)) {
            Wanted::Yes => {}
            Wanted::No(_) => return None,
            Wanted::Failed(why) => return left_out(Code::FilterFailed, &why),
        }
        let event = match self.shaped(&one.event) {
            Ok(event) => event,
            Err(why) => return left_out(Code::FilterFailed, &why),
        };
        let token = token();
        let text = if Arc::ptr_eq(&event, &one.event) {
            self.written(&token, one.json())
        } else {
            self.written(&token, &one.json_of(&event))
        };
        Some(Frame { text: text.into(), token: Some(token) })
    }

    /// Patterns of the topics that it may contain; none: all.
    pub(super) fn allowed(&self) -> Option<&[String]> {
        self.allowed_patterns.as_deref()
    }

    /// The organization whose events it may contain; none: all.
    pub(super) fn organization(&self) -> Option<&str> {
        self.organization.as_deref().or(self.subscription.row.organization.as_deref())
    }

    /// Whether the caller may see an event, and topic, organization and key are wanted.
    fn concerns(&self, one: &LiveEvent) -> bool {
        let (event, own) = (&one.event, self.organization.as_deref());
        own.is_none_or(|own| event.organization.as_deref() == Some(own))
            && self.subscription.wants_plainly(event)
            && self.allowed.as_ref().is_none_or(|allowed| allowed.find(&event.topic).next().is_some())
    }

    fn shaped(&self, event: &Arc<Event>) -> Result<Arc<Event>, String> {
        let mut warnings = Vec::new();
        let prepared = self
            .types
            .prepare(event, self.subscription.row.schema_version, &mut warnings)
            .map_err(|refusal| refusal.why)?;
        let outgoing = Outgoing::new(prepared, self.subscription.name.clone(), event.created_at);
        self.subscription.shape(outgoing).map(|outgoing| outgoing.event)
    }

    fn written(&self, token: &str, event: &str) -> String {
        match &self.format {
            Format::Message { id } => {
                let id = serde_json::Value::from(id.as_str());
                format!("{{\"type\":\"event\",\"id\":{id},\"token\":\"{token}\",\"event\":{event}}}")
            }
            Format::ServerSent => {
                format!(
                    "id: {token}\ndata: {{\"type\":\"event\",\"token\":\"{token}\",\"event\":{event}}}\n\n"
                )
            }
        }
    }
}

/// The topics that a caller may follow; none: all.
fn allowed(caller: &Caller) -> Option<Trie<()>> {
    let Caller::Client(claims) = caller else { return None };
    let mut trie = Trie::default();
    for pattern in &claims.topics {
        trie.insert(pattern, ());
    }
    Some(trie)
}

fn allowed_patterns(caller: &Caller) -> Option<Vec<String>> {
    let Caller::Client(claims) = caller else { return None };
    Some(claims.topics.iter().map(ToString::to_string).collect())
}

impl Format {
    /// An error about the subscription.
    pub(super) fn error(&self, refusal: &Refusal) -> Frame {
        match self {
            Self::Message { id } => Frame::plain(error_message(Some(id), refusal)),
            Self::ServerSent => {
                Frame::plain(format!("event: error\ndata: {}\n\n", error_message(None, refusal)))
            }
        }
    }

    /// Says something about the subscription, with its token.
    pub(super) fn say(&self, kind: &str, token: Option<&str>, more: &[(&str, serde_json::Value)]) -> Frame {
        let mut message = serde_json::json!({ "type": kind });
        if let Self::Message { id } = self {
            message["id"] = id.as_str().into();
        }
        if let Some(token) = token {
            message["token"] = token.into();
        }
        for (name, value) in more {
            message[*name] = value.clone();
        }
        match self {
            Self::Message { .. } => Frame::plain(message.to_string()),
            Self::ServerSent => {
                let id = token.map(|token| format!("id: {token}\n")).unwrap_or_default();
                Frame::plain(format!("event: {kind}\n{id}data: {message}\n\n"))
            }
        }
    }
}

impl Frame {
    /// A message that is no event.
    #[must_use]
    pub fn plain(text: String) -> Self {
        Self { text: text.into(), token: None }
    }
}
