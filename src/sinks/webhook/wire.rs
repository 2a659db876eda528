//! What a receiver sends through one connection, counted and watched below the HTTP client: heads that never
//! end are bounded by their bytes, and the status of a head that the client cannot read is known.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use http::StatusCode;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};

/// Most bytes of the head of a response, together with the interim responses (1xx) before it. The client
/// keeps a head in memory until it ends: hundreds that never end must have room.
const LONGEST_HEAD: usize = 64 * 1024;
/// Most bytes that an HTTP/2 connection may bring without a response or a part of a body for anyone. More
/// than the windows of all its streams and their heads.
const MOST_UNREAD: u64 = 8 * 1024 * 1024;
/// Most bytes of an HTTP/1 connection that are read at once. The client begins with a buffer of 8 KiB and
/// doubles it, up to 400 KiB, whenever a read has filled it: five hundred answers without end took 200 MiB.
const MOST_AT_ONCE: usize = 8 * 1024 - 1;
/// Bytes of a status line up to the status.
const STATUS_LINE: usize = "HTTP/1.1 200".len();

/// A head is longer than it may be.
#[derive(Debug, thiserror::Error)]
#[error("the response's head, or the interim responses before it, are longer than they may be")]
pub(super) struct TooLong;

/// What is known of a connection outside of it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Status of the last response that began, in HTTP/1; 0 for none.
    status: AtomicU16,
    /// Bytes since the last progress, in HTTP/2.
    unread: AtomicU64,
    /// Whether a request uses it: one of the constants of [`Use`].
    used: AtomicU8,
    is_shared: AtomicBool,
    /// Whether it stands in the queue of idle connections.
    is_queued: AtomicBool,
    reader: AtomicWaker,
}

/// Whether requests use a connection.
struct Use;

impl Use {
    const BUSY: u8 = 0;
    const IDLE: u8 = 1;
    /// Idle, and asked to close.
    const DISMISSED: u8 = 2;
    const CLOSED: u8 = 3;
}

impl Seen {
    pub(super) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Ordering::Relaxed)).ok()
    }

    /// Notes that its request has ended. Returns whether it is to be queued as idle.
    pub(super) fn rest(&self) -> bool {
        // Other requests may be under way on one of HTTP/2.
        !self.is_shared.load(Ordering::Relaxed)
            && self.becomes(Use::BUSY, Use::IDLE)
            && !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// Takes it from the queue, and asks it to close. Returns false if it is in use.
    pub(super) fn dismiss(&self) -> bool {
        self.is_queued.store(false, Ordering::Release);
        let dismissed = self.becomes(Use::IDLE, Use::DISMISSED);
        self.reader.wake();
        dismissed
    }

    fn becomes(&self, from: u8, to: u8) -> bool {
        self.used.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Notes that something arrived for an attempt.
    pub(super) fn progress(&self) {
        self.unread.store(0, Ordering::Relaxed);
    }
}

/// Any stream: plain or TLS, direct or through a proxy.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that watches what comes.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    seen: Arc<Seen>,
    heads: Heads,
    is_http2: bool,
    /// Whether requests go to a proxy with the whole address.
    is_relayed: bool,
    /// Its share of the connections that may be open.
    _room: Option<OwnedSemaphorePermit>,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>, is_http2: bool, is_relayed: bool) -> Self {
        let seen = Arc::new(Seen { is_shared: AtomicBool::new(is_http2), ..Seen::default() });
        Self { stream, seen, heads: Heads::default(), is_http2, is_relayed, _room: None }
    }

    /// Keeps this room until the connection is closed.
    pub(super) fn within(self, room: OwnedSemaphorePermit) -> Self {
        Self { _room: Some(room), ..self }
    }

    fn came(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.is_http2 {
            let more = bytes.len() as u64;
            let unread = self.seen.unread.fetch_add(more, Ordering::Relaxed) + more;
            return if unread > MOST_UNREAD { Err(TooLong) } else { Ok(()) };
        }
        if let Some(status) = self.heads.read(bytes)? {
            self.seen.status.store(status, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Notes that a request begins.
    fn goes(&mut self, bytes: &[u8]) {
        let begins = ["POST ", "PUT ", "PATCH ", "OPTIONS "];
        if !self.is_http2 && begins.iter().any(|method| bytes.starts_with(method.as_bytes())) {
            self.heads = Heads { within: true, ..Heads::default() };
            self.seen.status.store(0, Ordering::Relaxed);
            // Too late to close it for others.
            let _ = self.seen.becomes(Use::IDLE, Use::BUSY) || self.seen.becomes(Use::DISMISSED, Use::BUSY);
        }
    }

    /// The error of a write, or rather what the peer said before it closed the connection, such as the alert
    /// that ends a TLS handshake.
    fn cause(&mut self, context: &mut Context<'_>, error: io::Error) -> io::Error {
        let mut last = [0; 512];
        match Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut last)) {
            Poll::Ready(Err(said)) if said.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => said,
            _ => error,
        }
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_relayed).extra(Arc::clone(&self.seen));
        if self.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.seen.reader.register(context.waker());
        if self.seen.becomes(Use::DISMISSED, Use::CLOSED) {
            return Poll::Ready(Ok(())); // as if the peer had closed it
        }
        if self.is_http2 || buffer.remaining() <= MOST_AT_ONCE {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            return Poll::Ready(self.came(&buffer.filled()[before..]).map_err(io::Error::other));
        }
        let mut bytes = [MaybeUninit::uninit(); MOST_AT_ONCE];
        let mut few = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut few))?;
        buffer.put_slice(few.filled());
        Poll::Ready(self.came(few.filled()).map_err(io::Error::other))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.goes(bytes);
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(written.map_err(|error| self.cause(context, error)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.goes(parts.iter().find(|part| !part.is_empty()).map_or(&[], |part| part));
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts));
        Poll::Ready(written.map_err(|error| self.cause(context, error)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(flushed.map_err(|error| self.cause(context, error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Follows the heads of the responses to one HTTP/1 request, up to the end of the final one.
#[derive(Debug, Default)]
struct Heads {
    within: bool,
    bytes: usize,
    /// Bytes of the current line so far.
    line: usize,
    /// Whether the status line of the current head has ended.
    has_status: bool,
    start: [u8; STATUS_LINE],
}

impl Heads {
    /// Reads on. Returns the status of a final response that has begun within these bytes.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<u16>, TooLong> {
        let mut found = None;
        for byte in bytes {
            if !self.within {
                break;
            }
            self.bytes += 1;
            if self.bytes > LONGEST_HEAD {
                return Err(TooLong);
            }
            match byte {
                b'\r' => {}
                b'\n' => {
                    if self.line == 0 && self.has_status {
                        // An interim response is followed by another head.
                        self.within = self.status().is_some_and(|status| status < 200);
                        self.has_status = false;
                    } else if self.line > 0 && !self.has_status {
                        self.has_status = true;
                        found = self.status().filter(|status| *status >= 200).or(found);
                    }
                    self.line = 0;
                }
                byte => {
                    if !self.has_status && self.line < STATUS_LINE {
                        self.start[self.line] = *byte;
                    }
                    self.line += 1;
                }
            }
        }
        Ok(found)
    }

    fn status(&self) -> Option<u16> {
        let status = self.start.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
        let is_number = status.iter().all(u8::is_ascii_digit);
        if is_number { std::str::from_utf8(status).ok()?.parse().ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status that is seen when a response comes in pieces of this size.
    fn seen(response: &[u8], piece: usize) -> Option<u16> {
        let mut heads = Heads { within: true, ..Heads::default() };
        response.chunks(piece).fold(None, |seen, part| heads.read(part).unwrap().or(seen))
    }

    #[test]
    fn the_status_of_the_final_head_is_seen_in_whatever_pieces_it_comes() {
        for (response, status) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(204)),
            (
                "HTTP/1.1 103 X\r\nlink: a\r\n\r\nHTTP/1.1 100 X\r\n\r\nHTTP/1.1 200\r\nno colon\r\n",
                Some(200),
            ),
            ("\r\nHTTP/1.0 500 X\n\nHTTP/1.1 200 OK\r\n\r\n", Some(500)),
            ("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n", Some(200)),
            ("HTTP/1.1 2", None),
            ("HTTP/1.1 20x OK\r\n", None),
            ("SSH-2.0-x\r\n\r\n", None),
        ] {
            for piece in [1, 2, 7, 1000] {
                assert_eq!(seen(response.as_bytes(), piece), status, "{response:?} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn what_an_http2_server_sends_for_nobody_is_bounded() {
        let (here, mut there) = tokio::io::duplex(64 * 1024);
        let (mut wire, mut bytes) = (Wire::new(Box::new(here), true, false), vec![0; 64 * 1024]);
        let mut parts = async |wire: &mut Wire, count: u64| {
            for _ in 0..count {
                tokio::io::AsyncWriteExt::write_all(&mut there, &vec![0; 64 * 1024]).await?;
                tokio::io::AsyncReadExt::read_exact(wire, &mut bytes).await?;
            }
            io::Result::Ok(())
        };
        let half = MOST_UNREAD / (64 * 1024) / 2;
        parts(&mut wire, half).await.unwrap();
        wire.seen.progress();
        parts(&mut wire, half + 1).await.unwrap();
        assert!(
            parts(&mut wire, half).await.unwrap_err().get_ref().is_some_and(|error| error.is::<TooLong>())
        );
    }

    #[tokio::test]
    async fn an_http1_server_that_sends_without_end_fills_no_buffer() {
        let (here, mut there) = tokio::io::duplex(64 * 1024);
        let mut wire = Wire::new(Box::new(here), false, false);
        tokio::io::AsyncWriteExt::write_all(&mut there, &vec![b'x'; 20_000]).await.unwrap();
        let mut bytes = vec![0; 64 * 1024];
        let mut read = Vec::new();
        while read.iter().sum::<usize>() < 20_000 {
            read.push(tokio::io::AsyncReadExt::read(&mut wire, &mut bytes).await.unwrap());
        }
        assert_eq!(read, [MOST_AT_ONCE, MOST_AT_ONCE, 20_000 - 2 * MOST_AT_ONCE]);
    }

    #[test]
    fn a_body_of_any_length_is_not_counted_and_a_head_is() {
        let mut heads = Heads { within: true, ..Heads::default() };
        assert!(heads.read(b"HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(heads.read(&vec![b'a'; 2 * LONGEST_HEAD]).is_ok());
        let mut heads = Heads { within: true, ..Heads::default() };
        assert!(heads.read(&b"HTTP/1.1 103 X\r\n\r\n".repeat(LONGEST_HEAD / 18 + 1)).is_err());
    }
}
