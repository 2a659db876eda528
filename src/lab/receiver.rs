//! A local receiver of webhooks: behind `pgoutbox receive`, in the demo, and at the far end of the benchmark.
//! It can fail, be slow and be down on request, and checks signatures. Never part of a running relay.

use std::{
    fmt, io,
    net::SocketAddr,
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
    http::{HeaderMap, StatusCode},
    serve::ListenerExt,
};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::sinks::webhook::sign::{self, Key};

/// The largest body it takes (bytes): twice what a relay sends.
const LARGEST_BODY: usize = 2 * 1024 * 1024;
/// How long a stop waits for requests under way.
const DRAIN: Duration = Duration::from_secs(5);

/// How the receiver behaves. The default answers 204 to everything.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which part of the requests is answered 500: 0 to 1.
    pub fail_rate: f64,
    /// How long each answer takes.
    pub delay: Duration,
    /// One of them must have signed a request, or it is answered 401; empty: signatures are not looked at.
    pub secrets: Vec<Key>,
    /// Only count: bodies are not looked at, signatures not checked, nothing is handed to `received`.
    pub quiet: bool,
    /// Gets each request before it is answered. While the channel is full, answers wait.
    pub received: Option<mpsc::Sender<Received>>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Received {
    /// `webhook-id`: the event.
    pub id: Option<String>,
    /// `type` of a standard body.
    pub topic: Option<String>,
    /// `timestamp` of a standard body.
    pub timestamp: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
    /// Whether the signature was good; `None` when none was asked for.
    pub verified: Option<bool>,
    /// The status it was answered with.
    pub answered: u16,
}

/// Takes a receiver down and up again while it runs.
#[derive(Debug, Clone)]
pub struct Switch(Arc<Shared>);

impl Switch {
    /// While it is down, every request is answered 503.
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Relaxed);
    }

    /// Requests so far, whatever they were answered.
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

/// A receiver that is bound and not yet running.
#[derive(Debug)]
pub struct Receiver {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    /// Takes the address; connections wait until [`Receiver::run`].
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

    /// Where it listens: with the port that port 0 became.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The handle that outlives [`Receiver::run`].
    #[must_use]
    pub fn switch(&self) -> Switch {
        Switch(Arc::clone(&self.shared))
    }

    /// Answers until `stop`, then finishes what is under way, for at most 5 s. Spawn it on a tracker of yours and join it.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let answer = move |request: Request| answer(Arc::clone(&shared), request);
        let listener = self.listener.tap_io(|stream| {
            // Without it the receiver still works, only slower.
            let _ = stream.set_nodelay(true);
        });
        let answering = self.shared.stop.clone();
        let stopped = stop.clone();
        let server = axum::serve(listener, answer.into_make_service()).with_graceful_shutdown(async move {
            stopped.cancelled().await;
            answering.cancel();
        });
        tokio::select! {
            ended = server => ended,
            () = async { stop.cancelled().await; let _ = timeout(DRAIN, std::future::pending::<()>()).await; } => Ok(()),
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request) -> StatusCode {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let options = &shared.options;
    let (head, body) = request.into_parts();
    // Also where it is not looked at: an unread body costs the connection.
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else { return StatusCode::PAYLOAD_TOO_LARGE };
    if !options.delay.is_zero() {
        // Over when the delay is, or at once when the receiver stops.
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
        // Whoever listened may have left; the sender of the request is answered all the same.
        let _ = received.send(describe(head.headers, &body, verified, status)).await;
    }
    status
}

fn describe(headers: HeaderMap, body: &[u8], verified: Option<bool>, status: StatusCode) -> Received {
    /// What a standard body says about itself; its `data` is skipped, whatever it holds.
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
