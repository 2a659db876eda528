//! A private PostgreSQL in a temporary directory, with the settings of `pgoutbox bench`: durable, other
//! relevant settings at their defaults.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::process::{Process, Program};

/// Deadline of a start or stop.
const LIMIT: Duration = Duration::from_secs(60);
/// Deadline of a statement.
const STATEMENT: Duration = Duration::from_secs(120);
/// Prefix of directories; the process id of the owner follows.
const PREFIX: &str = "pgoutbox-peers-";

/// A running server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub(crate) struct Postgres {
    server: Process,
    port: u16,
    home: TempDir,
}

impl Postgres {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let bin = programs()
            .context("no PostgreSQL server was found; install one: sudo apt-get install postgresql")?;
        let account = unprivileged()?;
        remove_abandoned();
        let home = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()?;
        let data = home.path().join("data");
        if let Some((user, group)) = account {
            chown(home.path(), Some(user), Some(group)).context("changing the owner of a directory")?;
        }
        let arguments = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            "-D",
        ];
        let mut initdb = Program::new("initdb", bin.join("initdb"), &arguments);
        initdb.arguments.push(data.clone().into());
        initdb.account = account;
        initdb.run(home.path(), LIMIT).await?;

        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let folder = home.path().display();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{folder}'\nmax_connections = 300\n"
        );
        append(&data.join("postgresql.conf"), &settings)?;
        let mut server = Program::new("postgres", bin.join("postgres"), &["-D"]);
        server.arguments.push(data.into());
        server.account = account;
        let server = server.start(home.path())?;
        let mut postgres = Self { server, port, home };
        postgres.ready().await?;
        Ok(postgres)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let url = self.url("postgres");
        let answers = tokio::time::timeout(LIMIT, async {
            let mut looks = tokio::time::interval(Duration::from_millis(20));
            while self.server.runs() {
                looks.tick().await;
                if let Ok(connection) = PgConnection::connect(&url).await {
                    return connection.close().await.is_ok();
                }
            }
            false
        });
        let answers = answers.await.unwrap_or(false);
        anyhow::ensure!(answers, "the private PostgreSQL did not start: {}", self.server.end_of_log());
        Ok(())
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    pub(crate) fn url_as(&self, login: &str, database: &str) -> String {
        format!("postgres://{login}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Folder for logs. Removed with the server.
    pub(crate) fn folder(&self) -> &Path {
        self.home.path()
    }

    /// Processor time used so far by the server and its backends.
    pub(crate) fn cpu(&self) -> Duration {
        self.server.cpu_of_all()
    }

    pub(crate) async fn execute(&self, database: &str, statement: &str) -> anyhow::Result<()> {
        within(statement, async {
            let mut connection = PgConnection::connect(&self.url(database)).await?;
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
            connection.close().await
        })
        .await
    }

    /// The number that a query returns.
    pub(crate) async fn number(&self, database: &str, query: &str) -> anyhow::Result<i64> {
        within(query, async {
            let mut connection = PgConnection::connect(&self.url(database)).await?;
            let number = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok(number)
        })
        .await
    }

    pub(crate) async fn setting(&self, name: &str) -> anyhow::Result<String> {
        within(name, async {
            let mut connection = PgConnection::connect(&self.url("postgres")).await?;
            let value = sqlx::query_scalar("select current_setting($1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
            connection.close().await?;
            Ok(value)
        })
        .await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its processes end before the directory goes. What is written there is never read again.
        let _ = self.server.signal(Signal::QUIT);
        for _ in 0..LIMIT.as_millis() / 10 {
            if !self.server.runs() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

async fn within<T>(doing: &str, work: impl Future<Output = Result<T, sqlx::Error>>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(STATEMENT, work).await;
    done.map_err(|_| anyhow::anyhow!("{doing}: not done within {} s", STATEMENT.as_secs()))?
        .with_context(|| doing.to_owned())
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().append(true).open(path)?, text.as_bytes())
}

/// The directory of `initdb` and `postgres`: that of `pg_config` or of PATH, or else Debian's newest.
fn programs() -> Option<PathBuf> {
    let configured = output("pg_config", &["--bindir"]).map(PathBuf::from);
    let in_path = output("sh", &["-c", "command -v postgres"]).and_then(|path| fs::canonicalize(path).ok());
    let in_path = in_path.and_then(|path| path.parent().map(Path::to_owned));
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    packaged.sort();
    let packaged = packaged.into_iter().rev().map(|(_, bin)| bin);
    let mut all = configured.into_iter().chain(in_path).chain(packaged);
    all.find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
}

/// User and group to run as: PostgreSQL refuses root.
fn unprivileged() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let id = |what, name| output("id", &[what, name])?.parse().ok();
    let account = ["postgres", "nobody"].iter().find_map(|name| Some((id("-u", name)?, id("-g", name)?)));
    account
        .map(Some)
        .context("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")
}

/// The output of a program, if it succeeds.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Removes directories whose owners were killed.
fn remove_abandoned() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
