//! The receiver: HTTP/1.1 with keep-alive on its own thread, written by hand because it must be cheaper than
//! the measured systems. It answers 204, and counts how often it received each event of the backlog, whose
//! number is `"n"` of the body.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::{Buf, BytesMut};
use memchr::memmem::Finder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
};

const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
/// Limit of a head, and of a body, in bytes.
const LONGEST: usize = 64 * 1024;

/// A running receiver. Dropping it ends its connections and its thread.
#[derive(Debug)]
pub(crate) struct Receiver {
    address: SocketAddr,
    tally: Arc<Tally>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The requests that the receiver has recorded.
#[derive(Debug)]
pub(crate) struct Tally {
    began: Instant,
    /// How often each event was received, at most 255.
    seen: Vec<AtomicU8>,
    distinct: AtomicUsize,
    repeated: AtomicUsize,
    /// Requests that were no event of the backlog.
    strange: AtomicUsize,
    /// Length of all bodies, in bytes.
    bytes: AtomicU64,
    /// Times of the first request and of the last one that was no repetition, in nanoseconds since `began`.
    first: AtomicU64,
    last: AtomicU64,
}

impl Receiver {
    /// A receiver for a backlog of this many events.
    pub(crate) fn start(events: usize) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a port")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let tally = Arc::new(Tally::new(events));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&tally);
        let thread = std::thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, tally, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Tally {
    fn new(events: usize) -> Self {
        let seen = (0..=events).map(|_| AtomicU8::new(0)).collect();
        Self {
            began: Instant::now(),
            seen,
            distinct: AtomicUsize::default(),
            repeated: AtomicUsize::default(),
            strange: AtomicUsize::default(),
            bytes: AtomicU64::default(),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::default(),
        }
    }

    /// Number of different events so far.
    pub(crate) fn distinct(&self) -> usize {
        self.distinct.load(Relaxed)
    }

    /// Number of requests whose event was received before.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Relaxed)
    }

    /// Requests that were no event of the backlog.
    pub(crate) fn strange(&self) -> usize {
        self.strange.load(Relaxed)
    }

    /// Times of the first request and of the last one that was no repetition.
    pub(crate) fn span(&self) -> (Instant, Instant) {
        let at = |nanos: &AtomicU64| self.began + Duration::from_nanos(nanos.load(Relaxed));
        (at(&self.first), at(&self.last))
    }

    /// Mean length of a body, in bytes.
    pub(crate) fn body(&self) -> u64 {
        let requests = self.distinct() + self.repeated();
        self.bytes.load(Relaxed) / u64::try_from(requests.max(1)).unwrap_or(1)
    }

    fn count(&self, event: Option<usize>, length: usize) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.first.fetch_min(now, Relaxed);
        self.bytes.fetch_add(length as u64, Relaxed);
        let Some(seen) = event.filter(|event| *event > 0).and_then(|event| self.seen.get(event)) else {
            self.strange.fetch_add(1, Relaxed);
            return;
        };
        // Only this thread writes the counters.
        let times = seen.load(Relaxed);
        seen.store(times.saturating_add(1), Relaxed);
        if times == 0 {
            self.last.store(now, Relaxed);
            self.distinct.fetch_add(1, Relaxed);
        } else {
            self.repeated.fetch_add(1, Relaxed);
        }
    }
}

async fn accept(listener: std::net::TcpListener, tally: Arc<Tally>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let tally = Arc::clone(&tally);
        // A broken connection is no error: the client may have been killed.
        connections.spawn(async move { serve(stream, &tally).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, tally: &Tally) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let number = Finder::new(b"\"n\":");
    let (mut input, mut output) = (BytesMut::with_capacity(8 * 1024), Vec::new());
    while stream.read_buf(&mut input).await? > 0 {
        while let Some((head, length)) = request(&input)? {
            let body = &input[head..head + length];
            tally.count(event(&number, body), length);
            input.advance(head + length);
            output.extend_from_slice(ANSWER);
        }
        stream.write_all(&output).await?;
        output.clear();
    }
    Ok(())
}

/// Length of the head and of the body of the first request, once all of it is there.
fn request(input: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(input).context("reading a head")? else {
        anyhow::ensure!(input.len() < LONGEST, "a head is too long");
        return Ok(None);
    };
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("a body has no length")?.value;
    let length: usize =
        std::str::from_utf8(length)?.trim().parse().context("reading the length of a body")?;
    anyhow::ensure!(length < LONGEST, "a body is too long");
    Ok((input.len() >= head + length).then_some((head, length)))
}

/// The number of the event in a body.
fn event(number: &Finder<'_>, body: &[u8]) -> Option<usize> {
    let rest = body[number.find(body)? + 4..].trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |value, digit| value * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_once_it_is_complete() {
        let text = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345rest";
        let head = text.len() - 9;
        for end in 0..head + 5 {
            assert_eq!(request(&text[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(request(text).unwrap(), Some((head, 5)));
        request(b"POST / HTTP/1.1\r\n\r\n").unwrap_err();
    }

    #[test]
    fn an_event_is_known_by_its_number_and_counted_by_how_often_it_came() {
        let number = Finder::new(b"\"n\":");
        let tally = Tally::new(20);
        for body in [r#"{"data":{"n":20,"p":1}}"#, r#"{"data":{"n": 7, "p": 1}}"#, r#"{"data":{"n": 7}}"#] {
            tally.count(event(&number, body.as_bytes()), body.len());
        }
        assert_eq!((tally.distinct(), tally.repeated(), tally.strange()), (2, 1, 0));
        for body in ["{}", r#"{"n":21}"#, r#"{"n":0}"#] {
            tally.count(event(&number, body.as_bytes()), body.len());
        }
        assert_eq!((tally.distinct(), tally.repeated(), tally.strange()), (2, 1, 3));
    }
}
