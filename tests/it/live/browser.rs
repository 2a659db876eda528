//! A headless Chromium, and what pages and programs of a test report to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    response::Html,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Child, sync::watch, task::JoinSet, time::timeout};

use crate::support::tokens::{Signer, claims, now};

/// Secret of the tokens.
pub(super) const SECRET: &str = "a secret of thirty-two characters";
/// Deadline of every wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// The events that each client got, by its name.
pub(super) type Ledgers = BTreeMap<String, Vec<Value>>;

/// Serves pages and short-lived tokens, and takes what clients got.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    tokens: watch::Receiver<u32>,
    ledgers: watch::Receiver<Ledgers>,
    _running: JoinSet<()>,
}

/// A token of an organization's user, valid for so many seconds.
pub(super) fn token(seconds: u64) -> String {
    let claims = claims(json!({ "topics": ["shop.**"], "exp": now() + seconds }));
    Signer::secret(SECRET).token(None, &claims)
}

impl Receiver {
    /// `book`: the page of the book.
    pub(super) async fn start(
        page: &'static str,
        book: impl Fn() -> String + Clone + Send + Sync + 'static,
    ) -> Self {
        let ((given, tokens), (sender, ledgers)) = (watch::channel(0), watch::channel(Ledgers::new()));
        let (sender, given) = (Arc::new(sender), Arc::new(given));
        let router = Router::new()
            .route("/page", get(async move || Html(page)))
            .route("/book", get(async move || Html(book())))
            .route(
                "/live-token",
                get(async move || {
                    given.send_modify(|given| *given += 1);
                    token(3)
                }),
            )
            .route(
                "/ledgers",
                post(async move |body: String| {
                    let ledgers: Ledgers = serde_json::from_str(&body).unwrap();
                    sender.send_modify(|all| all.extend(ledgers));
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, mut running) = (listener.local_addr().unwrap(), JoinSet::new());
        running.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, tokens, ledgers, _running: running }
    }

    /// Waits until so many tokens were asked for.
    pub(super) async fn wait_for_tokens(&mut self, count: u32) {
        let asked = timeout(DEADLINE, self.tokens.wait_for(|given| *given >= count)).await.is_ok();
        assert!(asked, "{count} tokens were not asked for in time");
    }

    /// Waits until what the clients of these names got is as wanted.
    pub(super) async fn wait(&mut self, what: &str, names: &[&str], wanted: impl Fn(&[Value]) -> bool) {
        let all =
            |ledgers: &Ledgers| names.iter().all(|name| ledgers.get(*name).is_some_and(|one| wanted(one)));
        let ended = timeout(DEADLINE, self.ledgers.wait_for(all)).await.is_ok();
        assert!(ended, "{what} did not come in time: {:?}", self.ledgers());
    }

    pub(super) fn ledgers(&self) -> Ledgers {
        self.ledgers.borrow().clone()
    }
}

/// A browser with one page. Dropping it ends all its processes.
pub(super) struct Browser {
    process: Child,
    group: String,
    folder: PathBuf,
}

impl Browser {
    pub(super) fn open(url: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pgoutbox-browser-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).unwrap();
        let process = tokio::process::Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--no-proxy-server", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", folder.display()))
            .arg(url)
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("errors")).unwrap())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("chromium could not be started: {error}; run: make clients"));
        let group = format!("-{}", process.id().unwrap());
        Self { process, group, folder }
    }

    pub(super) async fn close(mut self) {
        self.end();
        let _ = timeout(DEADLINE, self.process.wait()).await;
    }

    fn end(&self) {
        let _ = Command::new("kill").args(["-s", "KILL", "--", &self.group]).stderr(Stdio::null()).status();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let errors = std::fs::read_to_string(self.folder.join("errors")).unwrap_or_default();
            eprintln!("chromium said:\n{errors}");
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
