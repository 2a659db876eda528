//! Many clients on one thread of their own that only count what they are sent, so that they cost little: no
//! frame is copied, and none is parsed but for its head.

use std::{
    cell::RefCell,
    io::{Read as _, Write as _},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::lab::bench::{reach, stage::SOON};

/// What a message of an event begins with.
const EVENT: &[u8] = br#"{"type":"event""#;
/// Bytes of a frame that are looked at: the longest head, and what an event begins with.
const LOOKED_AT: usize = 10 + EVENT.len();
/// Bytes that are read at once.
const READ: usize = 256 * 1_024;

/// Clients that count. Dropping it closes their connections.
#[derive(Debug)]
pub(super) struct Crowd {
    counts: Arc<Counts>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    events: AtomicU64,
    others: AtomicU64,
    gone: AtomicU64,
}

impl Crowd {
    /// Connects a client for each of these subscriptions; none: it says nothing.
    pub(super) async fn connect(
        address: SocketAddr,
        subscriptions: Vec<Option<String>>,
    ) -> anyhow::Result<Self> {
        let connecting = tokio::task::spawn_blocking(move || {
            let connections = subscriptions.iter().map(|wanted| connect(address, wanted.as_deref()));
            connections.collect::<anyhow::Result<Vec<_>>>()
        });
        let connections = connecting.await.context("connecting clients")??;
        let (counts, stop) = (Arc::<Counts>::default(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (counted, stopped) = (counts.clone(), stop.clone());
        let reading = move || {
            let local = LocalSet::new();
            let scratch = Rc::new(RefCell::new(vec![0; READ]));
            for connection in connections {
                local.spawn_local(read(connection, scratch.clone(), counted.clone()));
            }
            runtime.block_on(local.run_until(stopped.cancelled()));
        };
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(reading)?;
        Ok(Self { counts, stop, thread: Some(thread) })
    }

    /// Waits until the clients were sent so many events together.
    pub(super) async fn events(&self, wanted: u64, limit: Duration) -> anyhow::Result<()> {
        reach(|| self.counts.events.load(Ordering::Relaxed), wanted, limit, "waiting for events").await?;
        anyhow::ensure!(self.counts.gone.load(Ordering::Relaxed) == 0, "a client's connection was closed");
        Ok(())
    }

    /// Waits until the clients were sent so many other messages together.
    pub(super) async fn others(&self, wanted: u64) -> anyhow::Result<()> {
        reach(|| self.counts.others.load(Ordering::Relaxed), wanted, SOON, "waiting for clients").await
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection after the handshake, and what the client wants.
fn connect(address: SocketAddr, wanted: Option<&str>) -> anyhow::Result<std::net::TcpStream> {
    let mut connection = std::net::TcpStream::connect(address).context("connecting a client")?;
    connection.set_read_timeout(Some(SOON))?;
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    connection.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).context("reading the answer to a handshake")?;
        head.extend(byte);
    }
    anyhow::ensure!(head.starts_with(b"HTTP/1.1 101"), "refused: {}", String::from_utf8_lossy(&head));
    if let Some(wanted) = wanted {
        connection.write_all(&masked(wanted)?)?;
    }
    connection.set_nonblocking(true)?;
    Ok(connection)
}

/// A message as a frame of a client. The mask is zero, so the text is as it is.
fn masked(text: &str) -> anyhow::Result<Vec<u8>> {
    let length = u16::try_from(text.len())?.to_be_bytes();
    let mut frame = vec![0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
    frame.extend(text.as_bytes());
    Ok(frame)
}

async fn read(connection: std::net::TcpStream, scratch: Rc<RefCell<Vec<u8>>>, counts: Arc<Counts>) {
    let mut frames = Frames::default();
    if let Ok(connection) = tokio::net::TcpStream::from_std(connection) {
        while connection.readable().await.is_ok() {
            let mut scratch = scratch.borrow_mut();
            scratch[..frames.kept].copy_from_slice(&frames.begin[..frames.kept]);
            match connection.try_read(&mut scratch[frames.kept..]) {
                Ok(0) => break,
                Ok(read) => {
                    let read = read + frames.kept;
                    let (events, others) = frames.count(&scratch[..read]);
                    counts.events.fetch_add(events, Ordering::Relaxed);
                    counts.others.fetch_add(others, Ordering::Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
    counts.gone.fetch_add(1, Ordering::Relaxed);
}

/// Counts frames.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the last frame that are still to come.
    rest: usize,
    /// The begin of a frame of which too little was read.
    begin: [u8; LOOKED_AT],
    kept: usize,
}

impl Frames {
    /// Events and other messages that begin in these bytes. They begin with what was kept.
    fn count(&mut self, bytes: &[u8]) -> (u64, u64) {
        let (mut events, mut others, mut at) = (0, 0, 0);
        self.kept = 0;
        loop {
            let skipped = self.rest.min(bytes.len() - at);
            (at, self.rest) = (at + skipped, self.rest - skipped);
            let left = &bytes[at..];
            if left.len() < LOOKED_AT {
                self.begin[..left.len()].copy_from_slice(left);
                self.kept = left.len();
                return (events, others);
            }
            let (head, length) = match left[1] & 0x7f {
                126 => (4, usize::from(u16::from_be_bytes([left[2], left[3]]))),
                127 => (10, left[2..10].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))),
                short => (2, usize::from(short)),
            };
            *if left[head..].starts_with(EVENT) { &mut events } else { &mut others } += 1;
            self.rest = head + length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let event = |padding: usize| format!("{{\"type\":\"event\",\"x\":\"{}\"}}", "x".repeat(padding));
        let mut bytes = Vec::new();
        for text in [event(1), event(500), "{\"id\":\"a\",\"type\":\"caught_up\"}".to_owned(), event(70_000)]
        {
            bytes.push(0x81);
            match text.len() {
                short if short < 126 => bytes.push(u8::try_from(short).unwrap()),
                length if length < 65_536 => {
                    bytes.push(126);
                    bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
                }
                length => {
                    bytes.push(127);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            bytes.extend(text.as_bytes());
        }
        for cut in [1, 7, 24, 25, 26, 1_000, bytes.len()] {
            let (mut frames, mut all) = (Frames::default(), (0, 0));
            for part in bytes.chunks(cut) {
                let with_kept = [&frames.begin[..frames.kept], part].concat();
                let (events, others) = frames.count(&with_kept);
                all = (all.0 + events, all.1 + others);
            }
            assert_eq!(all, (3, 1), "cut into {cut}");
        }
    }
}
