//! Reads the log and writes it to the stream: of all gateways, the one that holds the lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _};
use sqlx::Connection as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Nats,
    line::Line,
    written::{self, About, Message},
};
use crate::{
    live::{
        doorbell,
        feed::{self, LOOK, PACE},
        payloads,
    },
    relay::{await_work::FEEDER_LOCK, telemetry::chain},
    sink::{plain::plain, servers::Servers},
    store::{Cursor, Error, Here, Store, retry_waits},
};

/// Interval of trying to get the lock, and of looking whether it is still held.
const TRY: Duration = Duration::from_secs(1);
/// Deadline of each statement on the connection that holds the lock.
const ANSWER: Duration = Duration::from_secs(5);
/// A quiet stream gets a message so often, so that its last one is always there.
const QUIET: Duration = Duration::from_secs(5);
/// After so long without a message the feeder is stuck, and another one may write although it has the lock.
const STUCK: Duration = Duration::from_secs(15);
/// Longest wait before it begins again after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// Questions that are answered at once.
const QUESTIONS: usize = 10_000;

/// Feeds the stream while it holds the lock.
#[derive(Debug)]
pub(in crate::live) struct Feeder {
    /// Name of the process.
    pub(in crate::live) name: String,
    pub(in crate::live) settings: Arc<Nats>,
    pub(in crate::live) store: Arc<Store>,
    /// For a connection that keeps its session; none: another process must feed.
    pub(in crate::live) listen: Option<Servers>,
    pub(in crate::live) news: Option<watch::Receiver<u64>>,
    pub(in crate::live) poll: Duration,
    /// Live clients of this process.
    pub(in crate::live) clients: watch::Receiver<usize>,
    /// Whether it feeds now.
    pub(in crate::live) feeds: Arc<AtomicBool>,
}

/// What is written, and where it ends.
struct Feeding<'f> {
    feeder: &'f Feeder,
    line: Line,
    here: Here,
    /// The number of the last message.
    sequence: u64,
    /// The cursor behind it.
    head: Arc<Cursor>,
    /// When it was written.
    wrote: Instant,
}

impl Feeder {
    /// Feeds whenever it gets the lock, until `stop` is cancelled.
    pub(in crate::live) async fn run(self, stop: CancellationToken) {
        let feeding = async {
            match &self.listen {
                Some(servers) => self.feed(servers).await,
                None => tracing::warn!(
                    "this gateway does not feed the others: it needs database.listen_url for a connection \
                     without a pooler"
                ),
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = feeding => {}
        }
        self.feeds.store(false, Ordering::Release);
        self.store.close().await;
    }

    async fn feed(&self, servers: &Servers) {
        let mut waits = retry_waits();
        loop {
            let ended = self.hold(servers, || waits = retry_waits()).await;
            self.feeds.store(false, Ordering::Release);
            tracing::warn!(why = ended, "feeding the other gateways ended, retrying");
            // Meanwhile another process may.
            let wait = waits.next().unwrap_or(AGAIN);
            let _ = tokio::time::timeout(wait, std::future::pending::<()>()).await;
        }
    }

    /// Waits for the lock and feeds. Returns why that ended.
    async fn hold(&self, servers: &Servers, mut held: impl FnMut()) -> String {
        let mut connection = match in_time(servers.connect(false)).await {
            Ok(connection) => connection,
            Err(why) => return why,
        };
        let mut tick = tokio::time::interval(TRY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut other = Other::default();
        loop {
            tick.tick().await;
            let locking = sqlx::query_scalar::<_, bool>("select pg_try_advisory_lock($1)").bind(FEEDER_LOCK);
            match in_time(locking.fetch_one(&mut connection)).await {
                Ok(true) => break,
                Ok(false) => held(),
                Err(why) => return why,
            }
            if other.is_stuck(&self.settings).await {
                tracing::warn!("the gateway that feeds the others is stuck; this one takes over");
                break;
            }
        }
        let (wake, (_clients, clients)) = (Arc::new(Notify::new()), watch::channel(1));
        let holds = async {
            loop {
                tick.tick().await;
                if let Err(why) = in_time(sqlx::query("select 1").execute(&mut connection)).await {
                    return why;
                }
            }
        };
        let (listen, news) = (Some(servers.clone()), self.news.clone());
        let ended = tokio::select! {
            why = holds => why,
            why = self.serve(&wake, held) => why,
            () = doorbell::listen(wake.clone(), clients, listen, news, CancellationToken::new()) => {
                unreachable!("it waits for ever")
            }
        };
        // Otherwise the server notices only later, and nobody else can begin.
        let _ = in_time(connection.close()).await;
        ended
    }

    /// Feeds. Returns why that ended.
    async fn serve(&self, wake: &Notify, held: impl FnMut()) -> String {
        let feeding = async {
            let mut feeding = self.begin().await?;
            self.feeds.store(true, Ordering::Release);
            feeding.run(wake, held).await
        };
        match feeding.await {
            Ok(never) => match never {},
            Err(why) => why,
        }
    }

    /// Begins where the last message ends, or else at the end of the log.
    async fn begin(&self) -> Result<Feeding<'_>, String> {
        let line = Line::open(&self.settings).await?;
        let here = self.store.look_around().await.map_err(failed)?;
        let (sequence, last) = line.last().await?;
        let last = last.map(|bytes| written::read(&bytes)).transpose();
        let last = last.map_err(|unfit| format!("the last message of the stream: {unfit}"))?;
        let head = last.map(|part| (part.about.database, part.about.mark.after));
        let wrote = Instant::now();
        let why = match &head {
            None => "the stream is empty",
            Some((database, _)) if *database != here.database => {
                "the last message of the stream is of another database"
            }
            Some((_, head)) if here.cursor.is_before(head) => "the database was set back",
            Some((_, head)) if self.may_lack(head).await.map_err(failed)? => {
                "events behind the last message of the stream were removed"
            }
            Some((_, head)) => {
                tracing::info!(sequence, "this gateway feeds the others");
                return Ok(Feeding { feeder: self, line, here, sequence, head: head.clone(), wrote });
            }
        };
        tracing::info!(sequence, why, "this gateway feeds the others, from the end of the log on");
        let about = About::empty(here.database, here.generation, here.now, here.cursor.clone());
        let head = about.mark.after.clone();
        let sequence = line.publish(about.write(), sequence).await?;
        Ok(Feeding { feeder: self, line, here, sequence, head, wrote })
    }

    async fn may_lack(&self, head: &Cursor) -> Result<bool, Error> {
        let removed = self.store.forgotten().await?;
        Ok(removed.is_some_and(|removed| head.may_lack(&removed)))
    }

    async fn report(&self) -> Result<(), String> {
        let clients = i32::try_from(*self.clients.borrow()).unwrap_or(i32::MAX);
        self.store.report_gateway(&self.name, clients).await.map_err(failed)
    }
}

/// The feeder that has the lock, as others see it.
#[derive(Default)]
struct Other {
    line: Option<Line>,
    /// The last message, and since when.
    last: Option<((i128, u64), Instant)>,
    looked: Option<Instant>,
}

impl Other {
    /// Whether it has written nothing for long. What it writes later is refused, since it is behind.
    async fn is_stuck(&mut self, settings: &Arc<Nats>) -> bool {
        if self.looked.is_some_and(|looked| looked.elapsed() < QUIET) {
            return false;
        }
        self.looked = Some(Instant::now());
        let Ok(last) = self.look(settings).await else {
            // Without NATS, nobody could write.
            (self.line, self.last) = (None, None);
            return false;
        };
        match self.last {
            Some((known, since)) if known == last => since.elapsed() > STUCK,
            _ => {
                self.last = Some((last, Instant::now()));
                false
            }
        }
    }

    async fn look(&mut self, settings: &Arc<Nats>) -> Result<(i128, u64), String> {
        let line = match self.line.take() {
            Some(line) => line,
            None => Line::open(settings).await?,
        };
        let last = (line.made, line.extent().await?.last);
        self.line = Some(line);
        Ok(last)
    }
}

/// There is none of it.
enum Never {}

impl Feeding<'_> {
    async fn run(&mut self, wake: &Notify, mut well: impl FnMut()) -> Result<Never, String> {
        let mut questions = self.line.listen().await?;
        self.feeder.report().await?;
        let (mut looked, mut open) = (Instant::now(), Vec::new());
        let mut poll = tokio::time::interval(self.feeder.poll.min(QUIET));
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while open.len() < QUESTIONS
                && let Some(Some(question)) = questions.next().now_or_never()
            {
                open.push(question);
            }
            if looked.elapsed() > LOOK {
                self.look().await?;
                looked = Instant::now();
            }
            let began = Instant::now();
            while self.read(!open.is_empty()).await? {}
            well();
            for question in open.drain(..) {
                self.line.answer(question, self.sequence).await?;
            }
            tokio::select! {
                lost = self.line.lost() => return Err(lost),
                question = questions.next() => {
                    open.push(question.ok_or("the connection to NATS was closed")?);
                }
                () = wake.notified() => {}
                _ = poll.tick() => {}
            }
            if open.is_empty()
                && let Some(rest) = PACE.checked_sub(began.elapsed())
            {
                let _ = tokio::time::timeout(rest, self.line.lost()).await;
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let here = self.feeder.store.look_around().await.map_err(failed)?;
        if here.database != self.here.database || here.cursor.is_before(&self.here.cursor) {
            return Err("the database was replaced or set back".to_owned());
        }
        self.here = here;
        self.feeder.report().await
    }

    /// Reads what is new and writes it. Returns whether there is more. That nothing is new is written only
    /// if somebody wants to know, or the stream was quiet for long.
    async fn read(&mut self, is_asked: bool) -> Result<bool, String> {
        let store = &self.feeder.store;
        let stretch = feed::read_on(store, &self.head, &self.here).await.map_err(failed)?;
        let generation = stretch.generation;
        let batch = payloads::batch(store, stretch, &self.here).await.map_err(failed)?;
        let after = &batch.mark.after;
        let (has_more, has_moved) = (after.has_window(), !after.is_same_place(&self.head));
        let is_due = self.wrote.elapsed() > QUIET;
        let is_news = !batch.events.is_empty() || has_more;
        if !(is_news || is_due || is_asked && has_moved) {
            return Ok(false);
        }
        for message in written::write(&batch, generation, self.line.most()) {
            self.publish(message).await?;
        }
        Ok(has_more)
    }

    async fn publish(&mut self, message: Message) -> Result<(), String> {
        let behind = message.behind.clone();
        self.sequence = self.line.publish(message, self.sequence).await?;
        (self.head, self.wrote) = (behind, Instant::now());
        Ok(())
    }
}

async fn in_time<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, query).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&plain(error))),
        Err(_) => Err(format!("the database: no answer within {} s", ANSWER.as_secs())),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn failed(error: Error) -> String {
    chain(&error)
}
