//! One client on a thread of its own that records when each event arrived.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::lab::bench::{reach, stage::SOON, within};

/// What is before the id of an event in its message.
const BEFORE_ID: &str = r#""event":{"id":""#;
/// Length of an id.
const ID: usize = 36;

/// A connected client. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    arrivals: HashMap<Uuid, Instant>,
    texts: Vec<String>,
    others: u64,
}

impl Listener {
    /// Connects, and subscribes with this message; none: it says nothing. With `keep` it keeps all events.
    pub(super) async fn connect(
        address: SocketAddr,
        subscribe: Option<&str>,
        keep: bool,
    ) -> anyhow::Result<Self> {
        let (heard, stop) = (Arc::<Mutex<Heard>>::default(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (report, connected) = tokio::sync::oneshot::channel();
        let (recorded, stopped) = (heard.clone(), stop.clone());
        let subscribe = subscribe.map(ToOwned::to_owned);
        let listening = async move {
            match connect(address, subscribe).await {
                Ok(socket) => {
                    let _ = report.send(Ok(()));
                    stopped.run_until_cancelled(listen(socket, &recorded, keep)).await;
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || runtime.block_on(listening))?;
        within(SOON, "connecting a client", connected).await??;
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// Waits until it was sent so many messages that are no events.
    pub(super) async fn others(&self, wanted: u64) -> anyhow::Result<()> {
        reach(|| self.heard().others, wanted, SOON, "waiting for a client").await
    }

    /// Number of events so far.
    pub(super) fn events(&self) -> u64 {
        u64::try_from(self.heard().arrivals.len()).unwrap_or(u64::MAX)
    }

    /// Time of the arrival of an event.
    pub(super) fn arrival(&self, event: Uuid) -> Option<Instant> {
        self.heard().arrivals.get(&event).copied()
    }

    /// Messages of events, if they are kept.
    pub(super) fn texts(&self) -> Vec<String> {
        self.heard().texts.clone()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Socket = WebSocketStream<tokio::net::TcpStream>;

async fn connect(address: SocketAddr, subscribe: Option<String>) -> anyhow::Result<Socket> {
    let connection = tokio::net::TcpStream::connect(address).await.context("connecting a client")?;
    let (mut socket, _) =
        tokio_tungstenite::client_async(format!("ws://{address}/v1/ws"), connection).await?;
    if let Some(subscribe) = subscribe {
        socket.send(Message::text(subscribe)).await?;
    }
    Ok(socket)
}

async fn listen(mut socket: Socket, heard: &Mutex<Heard>, keep: bool) {
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let now = Instant::now();
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match id_in(&text).and_then(|at| text[at..at + ID].parse().ok()) {
            Some(event) => {
                heard.arrivals.entry(event).or_insert(now);
                if keep || heard.texts.is_empty() {
                    heard.texts.push(text.as_str().to_owned());
                }
            }
            None => heard.others += 1,
        }
    }
}

/// Where the id of an event is in its message.
fn id_in(text: &str) -> Option<usize> {
    let at = text.find(BEFORE_ID)? + BEFORE_ID.len();
    text.is_char_boundary(at + ID).then_some(at)
}

/// The same message about another event.
pub(super) fn about(text: &str, event: Uuid) -> anyhow::Result<String> {
    let at = id_in(text).context("a message without an id")?;
    Ok(format!("{}{event}{}", &text[..at], &text[at + ID..]))
}
