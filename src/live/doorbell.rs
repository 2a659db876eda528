//! Wakes who reads the log when there may be new events: publishers ring while relays sleep, and relays tell
//! of what they have read.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::PgListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    relay::{
        await_work::{ATTENDANT_LOCK, BELL_LOCK, DOORBELL},
        telemetry::chain,
    },
    sink::{plain::plain, servers::Servers},
    store::retry_waits,
};

/// Channel on which relays tell gateways that they have read new events.
const NEWS: &str = "outbox_news";
/// Deadline of each statement on the listener's connection, and for connecting.
const ANSWER: Duration = Duration::from_secs(5);
/// Interval of looking whether a relay lives, which attends the doorbell, or this gateway must.
const ATTEND: Duration = Duration::from_secs(1);
/// Longest wait before connecting again.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens while there are clients, until `stop` is cancelled, and notifies `wake`.
pub(super) async fn listen(
    wake: Arc<Notify>,
    mut clients: watch::Receiver<usize>,
    servers: Option<Servers>,
    news: Option<watch::Receiver<u64>>,
    stop: CancellationToken,
) {
    let (has_relay, listens) = (news.is_some(), servers.is_some());
    let told = async {
        let Some(mut news) = news else { return std::future::pending().await };
        while news.changed().await.is_ok() {
            wake.notify_one();
        }
        // The relay of this process has ended, and another may follow.
        std::future::pending::<()>().await;
    };
    let heard = async {
        let Some(servers) = servers else { return std::future::pending().await };
        let mut waits = retry_waits();
        while !stop.is_cancelled() {
            let some = clients.wait_for(|count| *count > 0);
            let Some(Ok(_)) = stop.run_until_cancelled(some).await else { return };
            match Listening::connect(&servers).await {
                Ok(mut listening) => {
                    waits = retry_waits();
                    wake.notify_one();
                    if let Err(why) = listening.serve(&wake, &clients, !has_relay, &stop).await {
                        tracing::debug!(why, "live clients wait for the poll: LISTEN ended");
                    }
                    listening.leave().await;
                }
                Err(why) => tracing::warn!(why, "live clients wait for the poll: LISTEN failed, retrying"),
            }
            wake.notify_one();
            let wait = waits.next().unwrap_or(AGAIN);
            let _ = tokio::time::timeout(wait, stop.cancelled()).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = heard => {}
        // Who listens hands the bell over first.
        () = stop.cancelled(), if !listens => {}
    }
}

/// A listening connection.
struct Listening {
    listener: PgListener,
    /// Whether it holds the locks of the bell, so that publishers notify.
    attends: bool,
}

impl Listening {
    async fn connect(servers: &Servers) -> Result<Self, String> {
        let connecting = async {
            let mut listener = servers.listener().await?;
            listener.listen_all([DOORBELL, NEWS]).await?;
            Ok::<_, sqlx::Error>(Self { listener, attends: false })
        };
        in_time(connecting).await
    }

    /// Wakes the reader at each notification, while there are clients and until `stop` is cancelled.
    ///
    /// # Errors
    /// Why the connection cannot be used any more.
    async fn serve(
        &mut self,
        wake: &Notify,
        clients: &watch::Receiver<usize>,
        may_attend: bool,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let mut tick = tokio::time::interval(ATTEND);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                notification = self.listener.try_recv() => match notification {
                    Ok(Some(_)) => wake.notify_one(),
                    Ok(None) => return Err("the connection was closed".to_owned()),
                    Err(error) => return Err(chain(&plain(error))),
                },
                // Also where it need not attend: a connection that is dead is found so.
                _ = tick.tick() => {
                    if *clients.borrow() == 0 {
                        return Ok(());
                    }
                    // What was committed before it attended rang for nobody.
                    if in_time(self.attend(may_attend)).await? {
                        wake.notify_one();
                    }
                }
            }
        }
    }

    /// While no relay lives, holds the bell so that publishers notify. Returns whether it has just begun to.
    /// A relay that lives gets the bell at once: it holds it only while it sleeps, and tells of news while it
    /// is awake, which costs publishers less.
    async fn attend(&mut self, may_attend: bool) -> Result<bool, sqlx::Error> {
        let lives: bool = sqlx::query_scalar(sql!("live/relay_lives")).fetch_one(&mut self.listener).await?;
        if lives {
            self.hand_over().await?;
        }
        if lives || self.attends || !may_attend {
            return Ok(false);
        }
        for lock in [ATTENDANT_LOCK, BELL_LOCK] {
            let locking = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(lock);
            if !locking.fetch_one(&mut self.listener).await? {
                // Another gateway attends, or a publisher is under way; then the next look takes it.
                sqlx::query("select pg_advisory_unlock_all()").execute(&mut self.listener).await?;
                return Ok(false);
            }
        }
        self.attends = true;
        Ok(true)
    }
}

impl Listening {
    /// Gives the bell back, and wakes who may take it.
    async fn hand_over(&mut self) -> Result<(), sqlx::Error> {
        if std::mem::take(&mut self.attends) {
            let hand_over = sqlx::query("select pg_advisory_unlock_all(), pg_notify($1, '')").bind(DOORBELL);
            hand_over.execute(&mut self.listener).await?;
        }
        Ok(())
    }

    async fn leave(mut self) {
        // If this fails, the connection is closed and its locks are released; relays notice at their poll.
        let _ = in_time(self.hand_over()).await;
    }
}

async fn in_time<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, query).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&plain(error))),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}
