//! A local webhook receiver for `pgoutbox receive`, the demo and the benchmark. It can fail, delay answers,
//! be down, and check signatures. A relay does not use it.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    body::to_bytes,
    extract::Request,
    handler::HandlerWithoutStateExt,
    http::{HeaderMap, StatusCode, header, uri::Authority},
    serve::ListenerExt,
};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::sinks::webhook::sign::{self, Key};

/// Largest body, in bytes: twice what a relay sends.
const LARGEST_BODY: usize = 2 * 1024 * 1024;
/// Time for which a stop waits for open requests.
const DRAIN: Duration = Duration::from_secs(5);

/// Behaviour of the receiver. The default answers 204 to every request.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Share of requests answered with 500, 0 to 1.
    pub fail_rate: f64,
    /// Delay before each answer.
    pub delay: Duration,
    /// Secrets of which one must have signed a request, otherwise it is answered 401. With none,
    /// signatures are not checked.
    pub secrets: Vec<Key>,
    /// Whether to only count requests: no signatures are checked and nothing is sent to `received`.
    pub quiet: bool,
    /// Channel that gets each request before it is answered. While it is full, answers wait.
    pub received: Option<mpsc::Sender<Received>>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Received {
    /// Header `webhook-id`: the event's id.
    pub id: Option<String>,
    /// `type` of a standard body.
    pub topic: Option<String>,
    /// `timestamp` of a standard body.
    pub timestamp: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// Body; bytes that are not UTF-8 are replaced.
    pub body: String,
    /// Whether the signature was valid; none if it was not checked.
    pub verified: Option<bool>,
    /// Status of the answer.
    pub answered: u16,
}

/// Controls a running receiver.
#[derive(Debug, Clone)]
pub struct Switch(Arc<Shared>);

impl Switch {
    /// Sets whether the receiver is down and answers 503 to every request.
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Relaxed);
    }

    /// Number of requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }
}

struct Shared {
    options: Options,
    down: AtomicBool,
    requests: AtomicU64,
    stop: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .field("down", &self.down)
            .field("requests", &self.requests)
            .finish()
    }
}

/// A receiver that is bound but not running yet.
#[derive(Debug)]
pub struct Receiver {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    /// Binds the address. Connections wait until [`Receiver::run`].
    ///
    /// # Errors
    /// Those of binding.
    pub async fn bind(address: SocketAddr, options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Shared {
            options,
            down: AtomicBool::default(),
            requests: AtomicU64::default(),
            stop: CancellationToken::new(),
        };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// Address that it listens on, with the actual port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that can be used during [`Receiver::run`].
    #[must_use]
    pub fn switch(&self) -> Switch {
        Switch(Arc::clone(&self.shared))
    }

    /// Answers until `stop`, then waits up to 5 s for open requests.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let answer = move |request: Request| answer(Arc::clone(&shared), request);
        let listener = self.listener.tap_io(|stream| {
            // Ignore errors: this is only faster.
            let _ = stream.set_nodelay(true);
        });
        let answering = self.shared.stop.clone();
        let stopped = stop.clone();
        let server = axum::serve(listener, answer.into_make_service()).with_graceful_shutdown(async move {
            stopped.cancelled().await;
            answering.cancel();
        });
        let drained = async {
            stop.cancelled().await;
            let _ = timeout(DRAIN, std::future::pending::<()>()).await;
        };
        tokio::select! {
            ended = server => ended,
            () = drained => Ok(()),
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request) -> StatusCode {
    if is_of_a_web_page(&request) {
        return StatusCode::FORBIDDEN;
    }
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let options = &shared.options;
    let (head, body) = request.into_parts();
    // Read the body even if it is not used: otherwise the connection is closed.
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else { return StatusCode::PAYLOAD_TOO_LARGE };
    if !options.delay.is_zero() {
        // Ends early when the receiver stops.
        let _ = timeout(options.delay, shared.stop.cancelled()).await;
    }
    let signed = !options.quiet && !options.secrets.is_empty();
    let verified = signed.then(|| sign::verify(&options.secrets, &head.headers, &body, seconds()));
    let status = if shared.down.load(Ordering::Relaxed) {
        StatusCode::SERVICE_UNAVAILABLE
    } else if verified == Some(false) {
        StatusCode::UNAUTHORIZED
    } else if options.fail_rate > 0.0 && rand::random::<f64>() < options.fail_rate {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::NO_CONTENT
    };
    if let Some(received) = options.received.as_ref().filter(|_| !options.quiet) {
        // Answer even if the channel is closed.
        let _ = received.send(describe(head.headers, &body, verified, status)).await;
    }
    status
}

/// Whether a web page sent it: a page that somebody visits can reach this machine. Browsers say so with an
/// Origin, and a page whose name leads here asks for another Host.
fn is_of_a_web_page(request: &Request) -> bool {
    let headers = request.headers();
    let host = match headers.get(header::HOST) {
        Some(host) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        None => request.uri().authority().cloned(), // HTTP/2
    };
    let is_here = host.is_some_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    });
    headers.contains_key(header::ORIGIN) || !is_here
}

fn describe(headers: HeaderMap, body: &[u8], verified: Option<bool>, status: StatusCode) -> Received {
    /// Fields of a standard body; `data` is skipped.
    #[derive(Default, Deserialize)]
    struct Envelope {
        r#type: Option<String>,
        timestamp: Option<String>,
    }
    let Envelope { r#type: topic, timestamp } = serde_json::from_slice(body).unwrap_or_default();
    Received {
        id: headers.get(sign::ID).and_then(|id| id.to_str().ok()).map(str::to_owned),
        topic,
        timestamp,
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
        verified,
        answered: status.as_u16(),
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
