//! A TCP proxy between relays and PostgreSQL that delays, swallows, closes and resets, and cuts a connection
//! around the COMMIT of a statement. It reads the messages of the protocol, without TLS.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};

use super::pause;

/// The longest message that it passes on (bytes).
const LONGEST: usize = 64 * 1024 * 1024;

/// What becomes of what is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Each message takes so long, in both directions.
    Delay(Range<Duration>),
    /// Nothing arrives and nothing is said. What waits arrives when that ends.
    Blackhole,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// When a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The statement has run, and its COMMIT does not arrive.
    BeforeCommit,
    /// It is committed, and nobody is told.
    AfterCommit,
}

/// A statement whose connection is cut.
#[derive(Debug, Clone)]
struct Armed {
    /// The first line of its text.
    text: String,
    when: When,
}

#[derive(Debug)]
struct Shared {
    /// Of all connections, and of those of listeners.
    modes: [watch::Sender<Mode>; 2],
    /// Counts; all connections end at a change.
    ended: watch::Sender<(u64, Option<(End, bool)>)>,
    armed: Mutex<Option<Armed>>,
    cuts: AtomicUsize,
    cut: Notify,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// A proxy to this port of 127.0.0.1.
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            modes: [watch::Sender::new(Mode::Forward), watch::Sender::new(Mode::Forward)],
            ended: watch::Sender::new((0, None)),
            armed: Mutex::default(),
            cuts: AtomicUsize::default(),
            cut: Notify::new(),
        });
        let (mut accepting, serving) = (JoinSet::new(), shared.clone());
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let shared = serving.clone();
                connections.spawn(async move {
                    let _ = Connection::serve(client, to, shared).await; // whatever ended it, it has ended
                });
            }
        });
        Self { port, shared, _accepting: accepting }
    }

    /// The same login and database, through this proxy.
    pub(crate) fn options(&self, direct: &PgConnectOptions) -> PgConnectOptions {
        direct.clone().host("127.0.0.1").port(self.port)
    }

    /// Sets the mode of all connections, also of later ones.
    pub(crate) fn set(&self, mode: &Mode) {
        self.shared.modes.iter().for_each(|of| _ = of.send_replace(mode.clone()));
    }

    /// Sets the mode of connections of listeners.
    pub(crate) fn set_listeners(&self, mode: Mode) {
        self.shared.modes[1].send_replace(mode);
    }

    /// Ends all connections, or those of listeners.
    pub(crate) fn end(&self, how: End, listeners_only: bool) {
        self.shared.ended.send_modify(|ended| *ended = (ended.0 + 1, Some((how, listeners_only))));
    }

    /// Cuts the next connection that runs `sql/<name>.sql`.
    pub(crate) fn arm(&self, name: &str, when: When) {
        let path = format!("{}/sql/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned();
        *self.shared.armed.lock().unwrap() = Some(Armed { text, when });
    }

    /// Cuts nothing more.
    pub(crate) fn disarm(&self) {
        *self.shared.armed.lock().unwrap() = None;
    }

    /// Connections that were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Acquire)
    }

    /// Waits until so many connections were cut, at most 20 s.
    pub(crate) async fn wait_cut(&self, count: usize) {
        let waiting = async {
            loop {
                let cut = self.shared.cut.notified();
                tokio::pin!(cut);
                cut.as_mut().enable();
                if self.cuts() >= count {
                    return;
                }
                cut.await;
            }
        };
        let limit = Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{} of {count} cuts", self.cuts());
    }
}

/// One connection.
struct Connection {
    shared: Arc<Shared>,
    mode: watch::Receiver<Mode>,
    /// Status of the last `ReadyForQuery`.
    status: AtomicU8,
    /// What is to be cut: a statement of this connection has begun.
    begun: Mutex<Option<When>>,
    /// The COMMIT was passed on: nothing is told the client until its outcome is known.
    holds: AtomicBool,
    cut: Notify,
}

impl Connection {
    async fn serve(mut client: TcpStream, to: u16, shared: Arc<Shared>) -> io::Result<()> {
        client.set_nodelay(true)?;
        let first = startup(&mut client).await?;
        let is_listener = contains(&first, b"/listener\0");
        let mode = shared.modes[usize::from(is_listener)].subscribe();
        let mut ended = shared.ended.subscribe();
        ended.mark_unchanged();
        forwarding(&mut mode.clone()).await;
        let mut server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], to))).await?;
        server.set_nodelay(true)?;
        server.write_all(&first).await?;
        let this = Self {
            shared,
            mode,
            status: AtomicU8::new(0),
            begun: Mutex::default(),
            holds: AtomicBool::default(),
            cut: Notify::new(),
        };
        let how = {
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            let over = async {
                loop {
                    if ended.changed().await.is_err() {
                        return End::Fin;
                    }
                    let (_, how) = *ended.borrow_and_update();
                    if let Some((how, _)) = how.filter(|(_, listeners_only)| is_listener || !listeners_only) {
                        return how;
                    }
                }
            };
            tokio::select! {
                _ = this.up(from_client, to_server) => End::Fin,
                _ = this.down(from_server, to_client) => End::Fin,
                how = over => how,
                () = this.cut.notified() => End::Reset,
            }
        };
        if how == End::Reset {
            client.set_zero_linger()?;
            server.set_zero_linger()?;
        }
        Ok(())
    }

    /// From the client to the server.
    async fn up(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut mode = self.mode.clone();
        let mut rng = StdRng::seed_from_u64(rand::random());
        let mut texts: HashMap<Vec<u8>, String> = HashMap::new();
        loop {
            let message = message(&mut from).await?;
            hindrance(&mut mode, &mut rng).await;
            let body = message.get(5..).unwrap_or_default();
            let mut strings = body.split(|byte| *byte == 0);
            let mut is_commit = false;
            match message.first() {
                Some(b'P') => {
                    let (name, text) =
                        (strings.next().unwrap_or_default(), strings.next().unwrap_or_default());
                    texts.insert(name.to_vec(), String::from_utf8_lossy(text).into_owned());
                }
                Some(b'B') => {
                    let name = strings.nth(1).unwrap_or_default();
                    self.begin(texts.get(name).map_or("", String::as_str));
                }
                Some(b'Q') => {
                    let text = String::from_utf8_lossy(strings.next().unwrap_or_default()).into_owned();
                    self.begin(&text);
                    is_commit = text.eq_ignore_ascii_case("commit");
                }
                // Without a transaction it commits what was run before it.
                Some(b'S') => is_commit = self.status.load(Ordering::Acquire) != b'T',
                _ => {}
            }
            if is_commit {
                let begun = *self.begun.lock().unwrap();
                match begun {
                    None => {}
                    Some(When::BeforeCommit) => {
                        to.flush().await?;
                        self.note_cut();
                        return std::future::pending().await;
                    }
                    Some(When::AfterCommit) => self.holds.store(true, Ordering::Release),
                }
            }
            to.write_all(&message).await?;
        }
    }

    /// From the server to the client.
    async fn down(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut mode = self.mode.clone();
        let mut rng = StdRng::seed_from_u64(rand::random());
        let (mut held, mut failed) = (Vec::new(), false);
        loop {
            let message = message(&mut from).await?;
            hindrance(&mut mode, &mut rng).await;
            let is_ready = message.first() == Some(&b'Z');
            failed |= message.first() == Some(&b'E');
            if is_ready {
                self.status.store(message.get(5).copied().unwrap_or(0), Ordering::Release);
            }
            held.extend_from_slice(&message);
            if self.holds.load(Ordering::Acquire) {
                if !is_ready {
                    continue;
                }
                if !failed {
                    self.note_cut();
                    return std::future::pending().await;
                }
                // Not committed: the next one is cut.
                self.holds.store(false, Ordering::Release);
                *self.begun.lock().unwrap() = None;
            }
            failed &= !is_ready;
            to.write_all(&std::mem::take(&mut held)).await?;
        }
    }

    /// A statement with this text begins.
    fn begin(&self, text: &str) {
        let armed = self.shared.armed.lock().unwrap();
        if let Some(armed) = armed.as_ref().filter(|armed| text.starts_with(&armed.text)) {
            *self.begun.lock().unwrap() = Some(armed.when);
        }
    }

    /// This connection is cut. Another that has begun the same statement meanwhile is cut too, and not
    /// counted.
    fn note_cut(&self) {
        if self.shared.armed.lock().unwrap().take().is_some() {
            self.shared.cuts.fetch_add(1, Ordering::AcqRel);
            self.shared.cut.notify_waiters();
        }
        self.cut.notify_one();
    }
}

/// Waits as the mode wants.
async fn hindrance(mode: &mut watch::Receiver<Mode>, rng: &mut StdRng) {
    let length = match &*mode.borrow() {
        Mode::Delay(range) => Some(rng.random_range(range.clone())),
        Mode::Forward | Mode::Blackhole => None,
    };
    match length {
        Some(length) => pause(length).await,
        None => forwarding(mode).await,
    }
}

/// Waits until something arrives again.
async fn forwarding(mode: &mut watch::Receiver<Mode>) {
    if mode.wait_for(|mode| *mode != Mode::Blackhole).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The first message of a connection, which has no type.
async fn startup(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message).await?;
    body(from, message, 0).await
}

/// The next message: type, length and body.
async fn message(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await?;
    body(from, message, 1).await
}

async fn body(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    mut message: Vec<u8>,
    at: usize,
) -> io::Result<Vec<u8>> {
    let length: [u8; 4] = message.get(at..at + 4).and_then(|four| four.try_into().ok()).unwrap_or_default();
    let whole = at + u32::from_be_bytes(length) as usize;
    if whole > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let head = message.len();
    message.resize(whole.max(head), 0);
    from.read_exact(message.get_mut(head..).unwrap_or_default()).await?;
    Ok(message)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
