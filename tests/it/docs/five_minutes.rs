//! Runs the commands of README and of the page of dead letters as a reader pastes them, with a server, a
//! superuser and three terminals.

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

use super::{Block, Page};

/// Deadline of each block and each wait.
const LIMIT: Duration = Duration::from_secs(60);

/// A reader's machine. Commands differ from the page only in addresses and in what needs a terminal.
struct Reader {
    server: PrivatePostgres,
    folder: tempfile::TempDir,
    port: u16,
}

impl Reader {
    fn new() -> Self {
        let server = PrivatePostgres::start(Options { durable: false, ..Options::default() }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // By default psql continues after an error in its input.
        std::fs::write(folder.path().join("psqlrc"), "\\set ON_ERROR_STOP on\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { server, folder, port }
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
            .replace("PGOUTBOX__EGRESS__ALLOW=", "exec env PGOUTBOX__EGRESS__ALLOW=");
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
    async fn paste(&self, block: &Block) -> Output {
        timeout(LIMIT, self.shell(block).output())
            .await
            .unwrap_or_else(|_| panic!("not within {LIMIT:?}: {block:?}"))
            .unwrap()
    }

    /// Runs a block that must succeed, and returns its standard output.
    async fn works(&self, block: &Block) -> String {
        let output = self.paste(block).await;
        assert!(output.status.success(), "{block:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a block in a separate terminal until it is stopped.
    async fn terminal(&self, block: &Block, ready: &str) -> Terminal {
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
struct Terminal {
    child: Child,
    seen: Arc<(Mutex<Vec<String>>, Notify)>,
    _reading: JoinSet<()>,
}

impl Terminal {
    /// Waits for a line that contains all these texts.
    async fn shows(&self, words: &[&str]) {
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

    async fn close(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn steps<const N: usize>(page: &str, heading: &str) -> [Block; N] {
    let section = Page::read(page).section(heading);
    let blocks: Vec<_> = section.blocks().into_iter().filter(|block| block.language == "sh").collect();
    blocks
        .try_into()
        .unwrap_or_else(|blocks| panic!("{}: the test expects {N} blocks: {blocks:#?}", section.name))
}

#[tokio::test]
async fn five_minutes_on_your_own_database_work_as_they_are_printed_and_so_do_five_more() {
    let reader = Reader::new();
    let [database, migrate, receive, run, subscribe, publish, status] =
        steps("README.md", "## Five minutes on your own database");
    assert!(
        database.text.starts_with("cargo install --locked --path .\nsudo -u postgres psql "),
        "{database:?}"
    );
    reader.works(&database).await;
    assert!(reader.works(&migrate).await.contains("0001_events\n"));
    let receiver = reader.terminal(&receive, "receiving webhooks at").await;
    let relay = reader.terminal(&run, "relay started").await;
    reader.works(&subscribe).await;
    reader.works(&publish).await;
    let data = r#""data":{"id": 1001, "total": 4200}}"#;
    receiver.shows(&["204 ", "shop.orders.create", data]).await;
    let readme = Page::read("README.md").text;
    assert!(readme.contains(data), "README.md shows what arrives");
    let shown = reader.works(&status).await;
    assert!(shown.lines().any(|line| line.starts_with("shop-orders   webhook  ok ")), "{shown}");

    let heading = "## Five more minutes: let one fail";
    let [fail, two_attempts, list, receive, redrive] = steps("docs/operate/dead-letters.md", heading);
    receiver.close().await;
    let failing = reader.terminal(&fail, "receiving webhooks at").await;
    reader.works(&two_attempts).await;
    failing.shows(&["500 ", r#"{"id": 1002, "total": 990}"#]).await;
    let mut looks = tokio::time::interval(Duration::from_millis(200));
    let waiting = async {
        loop {
            looks.tick().await;
            let shown = reader.works(&list).await;
            if shown.contains("server_error") {
                return shown;
            }
        }
    };
    let shown = timeout(LIMIT, waiting).await.expect("a dead letter");
    let page = Page::read("docs/operate/dead-letters.md");
    let printed = page.blocks().into_iter().find(|block| block.language == "text").unwrap();
    assert_eq!(shown.lines().next(), printed.text.lines().next(), "the columns of {}", page.name);
    failing.close().await;
    let receiver = reader.terminal(&receive, "receiving webhooks at").await;
    assert_eq!(reader.works(&redrive).await, "1\n");
    receiver.shows(&["204 ", r#"{"id": 1002, "total": 990}"#]).await;
    receiver.close().await;
    relay.close().await;
}
