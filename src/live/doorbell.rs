//! Wakes the feed when there may be new events: publishers ring while relays sleep, and relays tell of what
//! they have read.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use crate::{
    relay::{await_work::{DOORBELL, backon_waits}, telemetry::chain},
    sink::plain::plain,
};

/// Channel on which relays tell gateways that they have read new events.
const NEWS: &str = "outbox_news";
/// Deadline for connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait before connecting again.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens while there are clients, until `stop` is cancelled.
pub(super) async fn listen(
    feed: Arc<Feed>,
    options: Option<PgConnectOptions>,
    news: Option<watch::Receiver<u64>>,
    stop: CancellationToken,
) {
    let told = async {
        let Some(mut news) = news else { return std::future::pending().await };
        while news.changed().await.is_ok() {
            feed.wake.notify_one();
        }
        // The relay of this process has ended, and another may follow.
        std::future::pending::<()>().await;
    };
    let heard = async {
        let Some(options) = options else { return std::future::pending().await };
        let mut waits = backon_waits();
        loop {
            let mut clients = feed.clients();
            if clients.wait_for(|count| *count > 0).await.is_err() {
                return std::future::pending().await;
            }
            match connect(&options).await {
                Ok(mut listener) => {
                    waits = backon_waits();
                    feed.wake.notify_one();
                    while let Ok(Some(_)) = listener.try_recv().await {
                        feed.wake.notify_one();
                    }
                }
                Err(why) => tracing::warn!(why, "live clients wait for the poll: LISTEN failed, retrying"),
            }
            feed.wake.notify_one();
            tokio::time::sleep(waits.next().unwrap_or(AGAIN)).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = told => {}
        () = heard => {}
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgListener, String> {
    let connecting = async {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_with(options.clone())
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all([DOORBELL, NEWS]).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(Ok(listener)) => Ok(listener),
        Ok(Err(error)) => Err(chain(&plain(error))),
        Err(_) => Err(format!("no connection within {} s", CONNECT.as_secs())),
    }
}
