//! The connection that hears the doorbell, and the locks that it holds.

use std::time::{Duration, Instant};

use sqlx::postgres::PgListener;
use uuid::Uuid;

use super::{ATTENDANT_LOCK, BELL_LOCK, DOORBELL, MaySleep};
use crate::{
    relay::{breaker, news, parts::Base, pauses, telemetry::chain},
    sink::{plain::plain, servers::Servers},
};

/// Deadline of each statement on the listener's connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A new listener hears its first notification within this, or it hears nothing.
const HEARS_WITHIN: Duration = Duration::from_secs(2);

/// Who holds one of the bell's locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A login with the rights of a relay.
    Relay,
    /// A login without them, which has taken the lock by mistake or to do harm.
    Stranger,
}

/// A listening connection.
pub(super) struct Listening {
    pub(super) listener: PgListener,
    /// Channel of its notifications to itself.
    pub(super) canary: String,
    /// When it last heard itself.
    pub(super) heard: Instant,
    /// Whether this relay holds [`ATTENDANT_LOCK`].
    attends: bool,
    /// Whether this relay holds [`BELL_LOCK`], so that publishers notify.
    holds: bool,
}

impl Listening {
    /// Connects, and waits until it hears itself. None: it hears nothing, as behind a transaction pooler.
    pub(super) async fn connect(base: &Base, servers: &Servers) -> Result<Option<Self>, String> {
        let connecting = async {
            let mut listener = servers.listener().await?;
            let canary = format!("outbox_canary_{}", Uuid::new_v4().simple());
            listener.listen_all([DOORBELL, breaker::CHANNEL, pauses::CHANNEL, canary.as_str()]).await?;
            if base.news.is_followed() {
                listener.listen(news::CHANNEL).await?;
            }
            Ok::<_, sqlx::Error>(Self {
                listener,
                canary,
                heard: Instant::now(),
                attends: false,
                holds: false,
            })
        };
        let mut listening = match tokio::time::timeout(ANSWER_WITHIN, connecting).await {
            Ok(Ok(listening)) => listening,
            Ok(Err(error)) => return Err(chain(&plain(error))),
            Err(_) => return Err(format!("no connection within {} s", ANSWER_WITHIN.as_secs())),
        };
        base.store.ring(&listening.canary).await.map_err(|error| chain(&error))?;
        match tokio::time::timeout(HEARS_WITHIN, listening.hear_itself()).await {
            Ok(Ok(())) => Ok(Some(listening)),
            Ok(Err(why)) => Err(why),
            Err(_) => Ok(None),
        }
    }

    /// Waits for the notification from itself. What else comes meanwhile is looked for afterwards.
    async fn hear_itself(&mut self) -> Result<(), String> {
        loop {
            match self.listener.try_recv().await {
                Ok(Some(notification)) if notification.channel() == self.canary => {
                    self.heard = Instant::now();
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err("the connection was closed".to_owned()),
                Err(error) => return Err(chain(&plain(error))),
            }
        }
    }

    pub(super) async fn may_sleep(&mut self) -> Result<MaySleep, String> {
        if self.holds {
            return Ok(MaySleep::Yes);
        }
        if !self.attends {
            self.attends = self.try_lock(ATTENDANT_LOCK).await?;
        }
        if !self.attends && self.holder(ATTENDANT_LOCK).await? == Some(Holder::Relay) {
            return Ok(MaySleep::OthersWatch);
        }
        // Nobody attends, or somebody who is no relay has taken the lock and would ring for nobody.
        self.holds = self.try_lock(BELL_LOCK).await?;
        if self.holds {
            return Ok(MaySleep::Yes);
        }
        let is_taken = !self.attends && self.holder(BELL_LOCK).await?.is_some();
        Ok(if is_taken { MaySleep::OthersWatch } else { MaySleep::NotYet })
    }

    /// Who holds a lock exclusively. Anybody who may connect can take it.
    async fn holder(&mut self, key: i64) -> Result<Option<Holder>, String> {
        let held = sqlx::query_scalar(
            "select bool_or(has_table_privilege(holder.usesysid, 'outbox.cursor', 'update')) \
               from pg_locks as held \
               join pg_stat_activity as holder on holder.pid = held.pid \
              where held.locktype = 'advisory' and held.mode = 'ExclusiveLock' and held.granted \
                and held.database = (select oid from pg_database where datname = current_database()) \
                and held.classid = 0 and held.objid = $1::bigint and held.objsubid = 1",
        );
        let is_relay: Option<bool> = answer(held.bind(key).fetch_one(&mut self.listener)).await?;
        Ok(is_relay.map(|is_relay| if is_relay { Holder::Relay } else { Holder::Stranger }))
    }

    pub(super) async fn woke(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.holds) {
            let unlock =
                sqlx::query("select pg_advisory_unlock($1)").bind(BELL_LOCK).execute(&mut self.listener);
            answer(unlock).await?;
        }
        Ok(())
    }

    /// Hands the bell over: wakes the other relays, one of which takes it.
    pub(super) async fn leave(&mut self) {
        if self.attends {
            let hand_over = sqlx::query("select pg_advisory_unlock_all(), pg_notify($1, '')")
                .bind(DOORBELL)
                .execute(&mut self.listener);
            // If this fails, the connection is closed and its locks are released; others notice at their
            // poll.
            let _ = answer(hand_over).await;
        }
    }

    async fn try_lock(&mut self, key: i64) -> Result<bool, String> {
        answer(sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key).fetch_one(&mut self.listener))
            .await
    }
}

async fn answer<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_WITHIN, query).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&plain(error))),
        Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
    }
}
