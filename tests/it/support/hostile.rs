//! An HTTP receiver on raw TCP that misbehaves in one way.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Behaviour for each request.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    /// Accepts the connection and never answers.
    Hang,
    /// Sends a valid head, then an endless body of 1 byte per 0.2 s.
    DripBody(u16),
    /// Sends a valid head, then this body, an eighth of it per 0.2 s.
    SlowBody(Vec<u8>),
    /// Sends an endless head of 1 byte per 0.2 s.
    DripHead,
    /// Sends `103 Early Hints` repeatedly.
    Endless103,
    /// Sends an endless chunked body, as fast as it is read.
    EndlessBody(u16),
    /// Sends a head of 10 MiB.
    HugeHead,
    /// Sends bytes that are not HTTP.
    Garbage,
    /// Sends a gzip body that decompresses to far more.
    Gzip(u16),
    /// Announces more bytes than it sends, then closes.
    CloseMidAnswer(u16),
    /// Reads the request and closes.
    CloseUnanswered,
    /// Answers with a redirect to an address.
    Redirect(u16, String),
    /// Answers with a status, headers and a body, and keeps the connection.
    Status(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Answers with these bytes as they are, and keeps the connection.
    Raw(Vec<u8>),
    /// Answers 204 after a while to so many requests at once, and 429 to further ones at once.
    Small(Arc<Small>),
}

/// A receiver with little room.
#[derive(Debug)]
pub(crate) struct Small {
    at_once: usize,
    takes: Duration,
    busy: AtomicUsize,
    refused: AtomicUsize,
}

impl Small {
    pub(crate) fn new(at_once: usize, takes: Duration) -> Arc<Self> {
        Arc::new(Self { at_once, takes, busy: AtomicUsize::new(0), refused: AtomicUsize::new(0) })
    }

    /// Number of requests answered with 429.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// The answer to one request.
    async fn answer(&self) -> &'static [u8] {
        let is_full = self.busy.fetch_add(1, Ordering::SeqCst) >= self.at_once;
        if is_full {
            self.refused.fetch_add(1, Ordering::SeqCst);
        } else {
            let _ = timeout(self.takes, std::future::pending::<()>()).await;
        }
        self.busy.fetch_sub(1, Ordering::SeqCst);
        if is_full { b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n" } else { b"HTTP/1.1 204 X\r\n\r\n" }
    }
}

/// A request as received.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Request line and headers.
    pub(crate) head: String,
    /// Body, with the announced length.
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// All headers, for libraries that verify.
    pub(crate) fn headers(&self) -> http::HeaderMap {
        let pairs = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        pairs
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }
}

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Hostile {
    /// Address that it listens on.
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
    closed: watch::Receiver<usize>,
    _stop: DropGuard,
}

impl Hostile {
    /// Starts a receiver on 127.0.0.1.
    pub(crate) async fn start(mode: Mode) -> Self {
        Self::start_on("127.0.0.1:0", mode).await
    }

    /// Starts a receiver on 127.0.0.2, which is outside the allow list of the tests and must not be
    /// reached.
    pub(crate) async fn trap() -> Self {
        Self::start_on("127.0.0.2:0", Mode::Status(200, vec![], vec![])).await
    }

    /// Starts a receiver on another address.
    pub(crate) async fn start_on(address: &str, mode: Mode) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (closing, closed) = watch::channel(0);
        let stop = CancellationToken::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let tracker = TaskTracker::new();
        let (accepted, kept, tasks) = (Arc::clone(&connections), Arc::clone(&requests), tracker.clone());
        let accept = async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (mode, kept, closing) = (mode.clone(), Arc::clone(&kept), closing.clone());
                tasks.spawn(async move {
                    // A peer that disconnects ends its connection, not the test.
                    let _ = serve(stream, &mode, &kept).await;
                    closing.send_modify(|closed| *closed += 1);
                });
            }
        };
        let stopped = stop.clone();
        tracker.spawn(async move {
            tokio::select! { () = accept => {}, () = stopped.cancelled() => {} }
        });
        Self { address, connections, requests, closed, _stop: stop.drop_guard() }
    }

    /// `http://address/path`
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Complete requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until the number of complete requests satisfies a condition.
    pub(crate) async fn wait_until(&self, within: Duration, enough: impl Fn(usize) -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        let count = || self.requests.lock().unwrap().len();
        let looking = async {
            while !enough(count()) {
                looks.tick().await;
            }
        };
        assert!(timeout(within, looking).await.is_ok(), "not within {within:?}; {} requests came", count());
    }

    /// Waits until this many connections have ended, at most 10 s.
    pub(crate) async fn closed(&mut self, count: usize) {
        let waited = timeout(Duration::from_secs(10), self.closed.wait_for(|closed| *closed >= count))
            .await
            .is_ok_and(|closed| closed.is_ok());
        assert!(waited, "{count} connections should have been closed; {} were made", self.connections());
    }
}

async fn serve(mut stream: TcpStream, mode: &Mode, requests: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some(request) = read_request(&mut stream).await? {
        requests.lock().unwrap().push(request);
        if !answer(&mut stream, mode).await? {
            break;
        }
    }
    Ok(())
}

/// Answers a request. Returns whether the connection stays open.
async fn answer(stream: &mut TcpStream, mode: &Mode) -> std::io::Result<bool> {
    match mode {
        Mode::Hang => until_closed(stream).await?,
        Mode::DripBody(status) => {
            stream
                .write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 100000\r\n\r\n").as_bytes())
                .await?;
            drip(stream).await?;
        }
        Mode::SlowBody(body) => {
            stream
                .write_all(format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes())
                .await?;
            let mut pace = tokio::time::interval(Duration::from_millis(200));
            for part in body.chunks(body.len().div_ceil(8).max(1)) {
                pace.tick().await;
                stream.write_all(part).await?;
            }
            return Ok(true);
        }
        Mode::DripHead => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nx-drip: ").await?;
            drip(stream).await?;
        }
        Mode::Endless103 => loop {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await?;
        },
        Mode::EndlessBody(status) => {
            stream
                .write_all(format!("HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
                .await?;
            let chunk = [b"1000\r\n".as_slice(), &[b'a'; 0x1000], b"\r\n"].concat();
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Mode::HugeHead => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            let line = [b"x-long: ".as_slice(), &[b'a'; 1000], b"\r\n"].concat();
            for _ in 0..10 * 1024 {
                stream.write_all(&line).await?;
            }
            stream.write_all(b"content-length: 0\r\n\r\n").await?;
        }
        Mode::Garbage => stream.write_all(b"\x16\x03\x01\0\xff SSH-2.0-\x1b[2J\r\n\r\n").await?,
        Mode::Gzip(status) => {
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-encoding: gzip\r\ncontent-length: 2000\r\n\r\n\x1f");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&[0x8b; 1999]).await?;
            return Ok(true);
        }
        Mode::CloseMidAnswer(status) => {
            stream
                .write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 100\r\n\r\nhalf").as_bytes())
                .await?;
        }
        Mode::CloseUnanswered => {}
        Mode::Redirect(status, location) => {
            stream
                .write_all(
                    format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
                        .as_bytes(),
                )
                .await?;
            return Ok(true);
        }
        Mode::Status(status, headers, body) => {
            let headers: String =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let mut answer =
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len())
                    .into_bytes();
            answer.extend_from_slice(body);
            stream.write_all(&answer).await?;
            return Ok(true);
        }
        Mode::Raw(bytes) => {
            stream.write_all(bytes).await?;
            return Ok(true);
        }
        Mode::Small(small) => {
            stream.write_all(small.answer().await).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

async fn drip(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    loop {
        pace.tick().await;
        stream.write_all(b"a").await?;
    }
}

async fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}

/// Reads a request; none if the peer has disconnected between two requests.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut request = Request { head, body: read.split_off(end + 4) };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(request))
}
