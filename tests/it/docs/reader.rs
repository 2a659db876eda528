//! A reader who pastes the blocks of a page into terminals, beside a server of PostgreSQL and its superuser.

use std::{
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

use super::Block;

/// Deadline of each block and each wait.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A reader's machine. Commands differ from the page only in addresses and in what needs a terminal.
pub(super) struct Reader {
    pub(super) server: PrivatePostgres,
    folder: tempfile::TempDir,
    port: u16,
    /// Address of a broker of Kafka in place of the one on the page.
    pub(super) kafka: Option<String>,
}

impl Reader {
    pub(super) fn new() -> Self {
        let server = PrivatePostgres::start(Options { durable: false, ..Options::default() }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // By default psql continues after an error in its input.
        std::fs::write(folder.path().join("psqlrc"), "\\set ON_ERROR_STOP on\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { server, folder, port, kafka: None }
    }

    fn shell(&self, block: &Block) -> Command {
        let url = self.server.url("postgres");
        let server = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let text = block
            .text
            .replace("cargo install --locked --path .\n", "")
            .replace("sudo -u postgres psql", &format!("psql '{url}'"))
            .replace("localhost:5432", server)
            .replace("127.0.0.1:7412", &format!("127.0.0.1:{}", self.port))
            .replace("pgoutbox receive", &format!("exec pgoutbox receive --port {}", self.port))
            .replace("PGOUTBOX__EGRESS__ALLOW=", "exec env PGOUTBOX__EGRESS__ALLOW=")
            .replace("PGOUTBOX__SINKS__KAFKA", "exec env PGOUTBOX__SINKS__KAFKA")
            .replace("localhost:9092", self.kafka.as_deref().unwrap_or("localhost:9092"));
        let binary = Path::new(env!("CARGO_BIN_EXE_pgoutbox")).parent().unwrap();
        let path =
            std::env::join_paths([binary, self.server.programs(), Path::new("/usr/bin"), Path::new("/bin")])
                .unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &text])
            .env_clear()
            .env("PATH", path)
            .env("PSQLRC", self.folder.path().join("psqlrc"))
            .env("PGOUTBOX__HTTP__LISTEN", "off")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        shell
    }

    /// Runs a block until it ends.
    pub(super) async fn paste(&self, block: &Block) -> Output {
        timeout(LIMIT, self.shell(block).output())
            .await
            .unwrap_or_else(|_| panic!("not within {LIMIT:?}: {block:?}"))
            .unwrap()
    }

    /// Runs a block that must succeed, and returns its standard output.
    pub(super) async fn works(&self, block: &Block) -> String {
        let output = self.paste(block).await;
        assert!(output.status.success(), "{block:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs SQL with psql as this login of the pages, which must succeed, and returns what it prints.
    pub(super) async fn sql(&self, login: &str, sql: &str) -> String {
        let address = format!("postgres://{login}:change-me@localhost:5432/shop");
        let text = format!("psql -At {address} <<'SQL'\n{sql}\nSQL\n");
        self.works(&Block { language: "sh".to_owned(), text, line: 0 }).await
    }

    /// Runs a block in a separate terminal until it is stopped.
    pub(super) async fn terminal(&self, block: &Block, ready: &str) -> Terminal {
        let mut child = self.shell(block).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let seen: Arc<(Mutex<Vec<String>>, Notify)> = Arc::default();
        let mut reading = JoinSet::new();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
        let lines = seen.clone();
        reading.spawn(async move {
            let show = |line: String| {
                lines.0.lock().unwrap().push(line);
                lines.1.notify_waiters();
            };
            let (mut out_open, mut err_open) = (true, true);
            while out_open || err_open {
                tokio::select! {
                    line = out.next_line(), if out_open => {
                        line.unwrap().map_or_else(|| out_open = false, show);
                    }
                    line = err.next_line(), if err_open => {
                        line.unwrap().map_or_else(|| err_open = false, show);
                    }
                }
            }
        });
        let terminal = Terminal { child, seen, _reading: reading };
        terminal.shows(&[ready]).await;
        terminal
    }
}

/// A program that runs in a separate terminal.
pub(super) struct Terminal {
    child: Child,
    seen: Arc<(Mutex<Vec<String>>, Notify)>,
    _reading: JoinSet<()>,
}

impl Terminal {
    /// Waits for a line that contains all these texts.
    pub(super) async fn shows(&self, words: &[&str]) {
        let waiting = async {
            loop {
                let more = self.seen.1.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if self.seen.0.lock().unwrap().iter().any(|line| words.iter().all(|word| line.contains(word)))
                {
                    return;
                }
                more.await;
            }
        };
        assert!(
            timeout(LIMIT, waiting).await.is_ok(),
            "{words:?} not within {LIMIT:?}: {:#?}",
            self.seen.0.lock().unwrap()
        );
    }

    pub(super) async fn close(mut self) {
        self.child.kill().await.unwrap();
    }
}
