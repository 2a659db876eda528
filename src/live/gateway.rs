//! What serves live clients in one process.

#[cfg(feature = "nats")]
use std::sync::atomic::AtomicBool;
use std::{net::IpAddr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "nats")]
use super::backplane::{Feeder, Follower, Nats};
use super::{
    Backplane, Settings,
    caller::Caller,
    counted::Transport,
    doorbell,
    feed::{self, Feed},
    history::History,
    message::{Code, Refusal, Subscribe},
    payloads,
    places::{Full, Place, Places},
    ring::LiveEvent,
    selection::{Format, Selection, Selections, Turns, Wish},
    session::Session,
    source::Source,
};
use crate::{
    event::{filter::Filter, topic::Pattern},
    relay::telemetry::{Telemetry, chain},
    sink::{Registry, servers::Servers},
    store::{self, ConnectionSettings, Cursor, Forgotten, Latest, Store, SubscriptionRow, TooMuch},
    subscription::Subscription,
};

/// Connections for what clients ask besides new events: pages of the log, snapshots, large payloads.
const CONNECTIONS: u32 = 2;
/// Most patterns of topics, or prefixes of keys, of one subscription.
const MOST_PATTERNS: usize = 100;
/// Events of the log that a snapshot looks at.
const LOOKED_AT: i64 = 1_000_000;
/// How long a client waits for its turn.
const WAIT: Duration = Duration::from_secs(10);
/// The tasks of a gateway end within this.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// What a gateway works with.
#[derive(Debug)]
pub struct Sources {
    /// How it connects to the database. `pool_size` is ignored.
    pub connection: ConnectionSettings,
    /// Servers for a connection that may LISTEN; none: there is only the poll.
    pub listen: Option<Servers>,
    /// Notified when the relay of this process has read new events; none: there is no relay.
    pub news: Option<tokio::sync::watch::Receiver<u64>>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    room: Arc<Room>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Where clients are served. Connections hold it.
#[derive(Debug)]
pub struct Room {
    pub(super) settings: Settings,
    pub(super) feed: Arc<Feed>,
    pub(super) history: History,
    pub(super) telemetry: Arc<Telemetry>,
    selections: Selections,
    places: Arc<Places>,
    store: Arc<Store>,
    /// One snapshot at a time: each reads the log.
    snapshots: Semaphore,
    /// KiB of snapshots that are not sent yet.
    snapshot_memory: Arc<Semaphore>,
    /// Messages that take long are made one piece at a time.
    pub(super) slow: Turns,
    /// Cancelled when clients are to leave.
    leaving: CancellationToken,
}

impl Gateway {
    /// Begins to serve. It connects when the first client comes.
    #[must_use]
    pub fn start(sources: Sources, settings: Settings) -> Self {
        let Sources { connection, listen, news, telemetry } = sources;
        let relay = format!("{}/live", connection.relay);
        let name = connection.relay.clone();
        let store = Arc::new(Store::lazy(ConnectionSettings { relay, pool_size: CONNECTIONS, ..connection }));
        let listen = listen.map(|servers| store.listener_servers(&servers));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let new_feed = |source| {
            let (poll, buffer) = (settings.poll, settings.buffer);
            Feed::new(name.clone(), source, store.clone(), telemetry.clone(), poll, buffer)
        };
        let feed = match &settings.backplane {
            Backplane::Off => {
                let feed = new_feed(Source::Log);
                let (wake, clients) = (feed.wake.clone(), feed.clients());
                tasks.spawn(doorbell::listen(wake, clients, listen, news, stop.clone()));
                feed
            }
            #[cfg(feature = "nats")]
            Backplane::Nats(nats) => {
                let (settings, feeds) = (Arc::new(Nats::clone(nats)), Arc::new(AtomicBool::new(false)));
                let feed = new_feed(Source::Stream(Follower::new(settings.clone(), feeds.clone())));
                let (store, clients) = (store.clone(), feed.clients());
                let poll = feed.poll;
                let feeder =
                    Feeder { name: name.clone(), settings, store, listen, news, poll, clients, feeds };
                tasks.spawn(feeder.run(stop.clone()));
                feed
            }
        };
        let room = Arc::new(Room {
            history: History::new(store.clone(), feed.clone(), telemetry.clone()),
            places: Places::new(settings.max_connections, settings.max_per_address),
            feed: feed.clone(),
            telemetry,
            selections: Selections::default(),
            store,
            snapshots: Semaphore::new(1),
            snapshot_memory: Arc::new(Semaphore::new(settings.buffer / 1_024)),
            slow: Turns::default(),
            leaving: CancellationToken::new(),
            settings,
        });
        tasks.spawn(feed.run(stop.clone()));
        tasks.close();
        Self { room, tasks, stop }
    }

    /// Where its clients are served.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Asks clients to leave: their connections end with a hint when to come back.
    pub fn drain(&self) {
        self.room.leaving.cancel();
    }

    /// Ends its tasks. Clients that are still here get nothing more.
    pub async fn close(self) {
        self.drain();
        self.stop.cancel();
        if tokio::time::timeout(ENDS_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("a task of live clients did not end in time and is abandoned");
        }
        let closing = async {
            self.room.feed.close().await;
            self.room.store.close().await;
        };
        let _ = tokio::time::timeout(ENDS_WITHIN, closing).await;
    }
}

impl Room {
    /// Limits and times.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Cancelled when clients are to leave.
    #[must_use]
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.places.count()
    }

    /// Takes in a client.
    ///
    /// # Errors
    /// When there is no place.
    pub fn admit(
        self: &Arc<Self>,
        caller: Caller,
        address: IpAddr,
        transport: Transport,
    ) -> Result<Session, Full> {
        let place: Place = self.places.take(address).inspect_err(|_| self.telemetry.live_refused())?;
        Ok(Session::new(self.clone(), caller, place, transport))
    }

    /// What a request selects, and the generation at which its channel was read.
    pub(super) fn select(
        &self,
        caller: &Caller,
        format: &Format,
        request: &Subscribe,
        since: Option<DateTime<Utc>>,
    ) -> Result<(Arc<Selection>, Option<i64>), Refusal> {
        let channels = self.feed.channels();
        let scope = scope(caller);
        let format = format.clone();
        if let Some(name) = &request.channel {
            // That another organization has it is nobody's business.
            let is_foreign = |channel: &&Arc<Subscription>| {
                let both = caller.organization().zip(channel.row.organization.as_deref());
                both.is_some_and(|(own, its)| own != its)
            };
            let channel = channels.get(name).filter(|channel| !is_foreign(channel)).ok_or_else(|| {
                let reason = format!("channel: there is no channel {name:?}; make it with outbox.subscribe");
                Refusal::new(Code::UnknownChannel, reason)
            })?;
            if !channel.row.active || !channel.can_evaluate() {
                let reason = format!("channel: {name:?} is paused or invalid; try again later");
                return Err(Refusal::new(Code::Unavailable, reason));
            }
            let what = format!("channel {name} {}", channels.generation);
            let wish = Wish { what, scope, since, format };
            let made = || Ok((channel.clone(), channels.types.clone(), true));
            return Ok((self.selections.get(wish, caller, made)?, Some(channels.generation)));
        }
        let what = format!("topics {:?} {:?} {:?}", request.topics, request.keys, request.filter);
        let wish = Wish { what, scope, since, format };
        // Event types say what subscriptions get. Who names topics gets events as they are.
        let made = || Ok((Arc::new(follow(caller, request)), Arc::default(), false));
        Ok((self.selections.get(wish, caller, made)?, None))
    }

    /// Whether a caller may ask for this at all. To be asked before [`Room::select`].
    ///
    /// # Errors
    /// What is wrong with the request, or what the token must permit.
    pub(super) fn permits(&self, caller: &Caller, request: &Subscribe) -> Result<(), Refusal> {
        if let Some(name) = &request.channel {
            if caller.may_join(name) {
                return Ok(());
            }
            let reason = format!("channel: the token does not permit {name:?}; it needs it in `channels`");
            return Err(Refusal::new(Code::Forbidden, reason));
        }
        if self.settings.channels_only && !matches!(caller, Caller::Operator) {
            let reason =
                "topics: only channels may be followed here (realtime.channels_only); name a channel";
            return Err(Refusal::new(Code::ChannelsOnly, reason));
        }
        if let Caller::Client(claims) = caller
            && claims.topics.is_empty()
        {
            let reason = "topics: the token permits no topics; it needs them in `topics`, or name a channel";
            return Err(Refusal::new(Code::Forbidden, reason));
        }
        check_patterns(request)
    }

    /// A cursor before the first event of this time.
    pub(super) async fn cursor_since(&self, time: DateTime<Utc>) -> Result<Cursor, Refusal> {
        let removed: Option<Forgotten> = self.store.forgotten().await.map_err(|error| failed(&error))?;
        if let Some(removed) = removed.filter(|removed| removed.created_at >= time) {
            let reason = format!(
                "since: events up to {} were removed; use a later time, or a snapshot",
                removed.created_at.to_rfc3339()
            );
            return Err(Refusal::new(Code::TokenTooOld, reason));
        }
        self.store.cursor_since(time).await.map_err(|error| failed(&error))
    }

    /// The newest event of each key that a selection may want, and the cursor behind them.
    ///
    /// # Errors
    /// When there is too much of it, or the database does not answer.
    pub(super) async fn latest(&self, selection: &Selection) -> Result<(Vec<LiveEvent>, Cursor), Refusal> {
        let turn = tokio::time::timeout(WAIT, self.snapshots.acquire()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let row = &selection.subscription.row;
        let most = i64::try_from(self.settings.max_snapshot).unwrap_or(i64::MAX);
        let wanted = Latest {
            topics: &row.topics,
            organization: selection.organization(),
            keys: row.keys.as_deref(),
            most_keys: most,
            most_events: LOOKED_AT,
            allowed: selection.allowed(),
        };
        let snapshot = self.store.latest(wanted).await.map_err(|error| failed(&error))?;
        let cursor = snapshot.cursor();
        let too_large = |what: String| Refusal::new(Code::SnapshotTooLarge, format!("snapshot: {what}"));
        let events = snapshot.events.map_err(|too_much| {
            too_large(match too_much {
                TooMuch::Keys => {
                    format!(
                        "there are more than {most} keys (realtime.max_snapshot); name fewer topics or keys"
                    )
                }
                TooMuch::Events => {
                    format!("the log has more than {LOOKED_AT} events to look at; begin with a time")
                }
            })
        })?;
        let (count, largest) = (events.len(), self.settings.buffer);
        let events =
            payloads::complete(&self.store, events, largest).await.map_err(|error| failed(&error))?;
        if events.len() < count {
            return Err(too_large(format!(
                "it has more than {largest} bytes (realtime.buffer); name fewer keys"
            )));
        }
        Ok((events, cursor))
    }

    /// Memory for a snapshot of so many bytes, until it is sent.
    ///
    /// # Errors
    /// When others hold it for 10 s.
    pub(super) async fn room_for_snapshot(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let all = self.settings.buffer / 1_024;
        let wanted = u32::try_from((bytes / 1_024).clamp(1, all)).unwrap_or(u32::MAX);
        let held = tokio::time::timeout(WAIT, self.snapshot_memory.clone().acquire_many_owned(wanted)).await;
        held.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// For how long the oldest events in memory have been there.
    pub(super) fn behind(&self) -> Duration {
        let age = self.feed.here().ok().zip(self.feed.oldest()).map(|(here, oldest)| here.time() - oldest);
        age.and_then(|age| age.to_std().ok()).unwrap_or_default()
    }
}

/// Whether topics, keys and filter are valid.
fn check_patterns(request: &Subscribe) -> Result<(), Refusal> {
    let topics = request.topics.as_deref().unwrap_or_default();
    for (name, list) in [("topics", Some(topics)), ("keys", request.keys.as_deref())] {
        if list.is_some_and(|list| !(1..=MOST_PATTERNS).contains(&list.len())) {
            return Err(Refusal::new(Code::BadTopics, format!("{name}: use 1 to {MOST_PATTERNS}")));
        }
    }
    for pattern in topics {
        Pattern::parse(pattern).map_err(|error| Refusal::new(Code::BadTopics, format!("topics: {error}")))?;
    }
    if let Some(filter) = &request.filter {
        Filter::compile(filter).map_err(|error| Refusal::new(Code::BadFilter, format!("filter: {error}")))?;
    }
    Ok(())
}

/// The subscription for topics that a client names itself.
fn follow(caller: &Caller, request: &Subscribe) -> Subscription {
    let topics = request.topics.as_deref().unwrap_or_default();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    // Without a name: no event says what happened to it.
    let row = SubscriptionRow {
        keys: request.keys.clone(),
        filter: request.filter.clone(),
        organization: caller.organization().map(ToOwned::to_owned),
        ..SubscriptionRow::new("", &topics, "live", serde_json::json!({}))
    };
    Subscription::bind(row, &Registry::default()).0
}

/// What a caller may see, as text: the same for callers that may see the same.
fn scope(caller: &Caller) -> String {
    match caller {
        Caller::Open | Caller::Operator => String::new(),
        Caller::Client(claims) => format!("{:?} {:?}", claims.organization, claims.topics),
    }
}

fn busy() -> Refusal {
    Refusal::new(Code::Unavailable, "snapshot: others are being made; try again")
}

fn failed(error: &store::Error) -> Refusal {
    tracing::warn!(error = chain(error), "what a live client asks for could not be read");
    feed::unavailable()
}
