//! The binary as a child process, and a receiver in this process that records its requests in the journal.

use std::{
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgoutbox::lab::receiver::{Options, Received, Receiver, Switch};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::{Notify, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Books, Database, ledger::Request};

/// Lines that a process has written, and a notification at each.
type Lines = Arc<(Mutex<Vec<String>>, Notify)>;

/// A relay, or another command that goes on, in its own process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct ChildRelay {
    child: Child,
    lines: Lines,
    printed: Lines,
    _reading: JoinSet<()>,
}

impl ChildRelay {
    /// Starts a relay and waits until it runs. `settings` are environment variables.
    pub(crate) async fn start(database: &Database, name: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = Self::command(database, &["run"]);
        command
            .env("PGOUTBOX__RELAY__NAME", name)
            .env("PGOUTBOX__HTTP__LISTEN", "off")
            .envs(settings.iter().copied());
        let started = Self::of(command);
        started.wait_for_log("relay started").await;
        started
    }

    /// A command with the login of a relay.
    pub(crate) fn command(database: &Database, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", database.relay_url())
            .env("PGOUTBOX__RELAY__ATTEMPT_LOG", "all")
            .env("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1/32")
            .env("PGOUTBOX__EGRESS__ALLOW_HTTP", "true")
            .env("PGOUTBOX__TELEMETRY__FORMAT", "text");
        command
    }

    /// Starts a command.
    pub(crate) fn of(mut command: tokio::process::Command) -> Self {
        let mut child = command
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (lines, printed) = (Lines::default(), Lines::default());
        let mut reading = JoinSet::new();
        reading.spawn(read(child.stderr.take().unwrap(), lines.clone()));
        reading.spawn(read(child.stdout.take().unwrap(), printed.clone()));
        Self { child, lines, printed, _reading: reading }
    }

    /// Waits until it has printed so many lines, at most 20 s. Returns all that it has printed.
    pub(crate) async fn wait_printed(&self, count: usize) -> Vec<String> {
        let is_there = wait(&self.printed, |lines| lines.len() >= count).await;
        let printed = self.printed.0.lock().unwrap().clone();
        assert!(is_there, "{count} lines were not printed: {printed:#?}; {:#?}", self.log());
        printed
    }

    /// Waits until its log holds `text`, at most 20 s.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        self.wait_for_logs(text, 1).await;
    }

    /// Waits until this many lines of its log hold `text`, at most 20 s.
    pub(crate) async fn wait_for_logs(&self, text: &str, count: usize) {
        let holds = |lines: &[String]| lines.iter().filter(|line| line.contains(text)).count() >= count;
        assert!(wait(&self.lines, holds).await, "{text:?} was not logged: {:#?}", self.log());
    }

    /// Id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }

    /// Sends a signal to this process only.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.child.id().expect("it still runs").to_string();
        assert!(
            Command::new("sh")
                .args(["-c", "kill -s \"$0\" \"$1\"", signal, &process])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end. Returns the exit code, or none after a signal.
    pub(crate) async fn ended(&mut self, within: Duration) -> Option<i32> {
        match timeout(within, self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => panic!("it did not end within {within:?}: {:#?}", self.log()),
        }
    }

    pub(crate) async fn kill(&mut self) {
        self.signal("KILL");
        self.ended(Duration::from_secs(10)).await;
    }
}

async fn read(from: impl tokio::io::AsyncRead + Unpin, to: Lines) {
    let mut from = BufReader::new(from).lines();
    while let Ok(Some(line)) = from.next_line().await {
        to.0.lock().unwrap().push(line);
        to.1.notify_waiters();
    }
}

/// Waits until the lines are as wanted, at most 20 s.
async fn wait(lines: &Lines, is_wanted: impl Fn(&[String]) -> bool) -> bool {
    let waiting = async {
        loop {
            let more = lines.1.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if is_wanted(&lines.0.lock().unwrap()) {
                return;
            }
            more.await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.is_ok()
}

/// A receiver of webhooks.
#[derive(Debug)]
pub(crate) struct Server {
    books: Books,
    address: std::net::SocketAddr,
    pub(crate) switch: Switch,
    _tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn open(books: &Books, takes: Duration) -> Self {
        Self::open_with(books, Options { delay: takes, ..Options::default() }).await
    }

    pub(crate) async fn open_with(books: &Books, options: Options) -> Self {
        let (received, mut inbox) = mpsc::channel(65_536);
        let options = Options { received: Some(received), ..options };
        let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
        let (address, switch, stop) = (receiver.address(), receiver.switch(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let stopped = stop.clone();
        tasks.spawn(async move { receiver.run(stopped).await.unwrap() });
        let journal = books.clone();
        tasks.spawn(async move {
            while let Some(received) = inbox.recv().await {
                journal.request(as_request(&received));
            }
        });
        Self { books: books.clone(), address, switch, _tasks: tasks, _stop: stop.drop_guard() }
    }

    pub(crate) async fn subscribe(&self, database: &Database, name: &str, topics: &[&str]) {
        let url = format!("http://{}/", self.address);
        let config = serde_json::json!({ "url": url, "headers": { "x-subscription": name } });
        self.books.subscribe_to(database, name, topics, None, "webhook", config).await;
    }

    /// Waits until this many requests have arrived, answered or not.
    pub(crate) async fn wait_knocked(&self, count: u64) {
        let began = Instant::now();
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while self.switch.requests() < count {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{} of {count} requests came",
                self.switch.requests()
            );
            looks.tick().await;
        }
    }
}

fn as_request(received: &Received) -> Request {
    // The payload is the last field, unchanged: `…,"data":<payload>}`.
    let payload =
        received.body.split_once("\"data\":").map_or("", |(_, rest)| rest.trim_end().trim_end_matches('}'));
    Request {
        event: received.id.as_deref().unwrap_or("").parse().unwrap_or_default(),
        subscription: received.headers["x-subscription"].to_str().unwrap().to_owned(),
        payload: format!("{payload}}}"),
        arrived: Instant::now(),
        took_effect: (200..300).contains(&received.answered),
    }
}
