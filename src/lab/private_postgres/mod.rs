//! A private PostgreSQL in a temporary directory, for the demo, the benchmark and tests. Not for real data:
//! every local user can connect without a password.
//!
//! It stops when it is dropped, and also when its owner is killed: the kernel signals it when the thread that
//! started it ends (`setpriv --pdeathsig`), so a separate thread starts it and waits for it. All functions
//! block. They need no runtime, and may be called inside one.

mod account;
mod files;
mod process;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use account::Account;
use files::Home;
pub(crate) use files::free_port;

use crate::lab::private_server::child::Child;

/// Oldest supported major version.
const OLDEST: u32 = 14;
/// Settings with which the log has every statement and the database that it was sent to.
pub const LOGS_STATEMENTS: [(&str, &str); 3] =
    [("log_statement", "all"), ("log_line_prefix", "%d "), ("log_min_messages", "log")];
/// Deadline of a start, including recovery after a crash.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time after which a server that does not stop is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Most ports that are tried if one is taken meanwhile.
const PORTS_TRIED: u32 = 5;

/// Why the server cannot be started, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL is not installed.
    #[error(
        "no PostgreSQL server of version {OLDEST} or newer was found; \
         install one: sudo apt-get install postgresql"
    )]
    Missing,
    /// The process runs as root and cannot switch to another user.
    #[error("PostgreSQL refuses to run as root, and {0}; run this as another user")]
    Root(&'static str),
    /// An operation on a file failed.
    #[error("{doing} {path}")]
    File {
        /// The operation, such as `creating`.
        doing: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("running {program}")]
    Program {
        /// Path of the program.
        program: String,
        /// Error of the system.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// `pg_basebackup` failed.
    #[error("pg_basebackup failed: {0}")]
    Basebackup(String),
    /// The server ended while it started.
    #[error("the private PostgreSQL ended while starting ({status}); the end of its log: {log}")]
    Ended {
        /// Exit status.
        status: ExitStatus,
        /// Last lines of the log.
        log: String,
    },
    /// The server did not become ready.
    #[error(
            "the private PostgreSQL was not ready after {} s; the end of its log: {log}",
            START_DEADLINE.as_secs()
        )]
    NotReady {
        /// Last lines of the log.
        log: String,
    },
    /// A statement failed.
    #[error("running {statement:?} on the private PostgreSQL")]
    Statement {
        /// The statement.
        statement: String,
        /// Error of the database.
        source: sqlx::Error,
    },
}

/// Options of the server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Settings for `postgresql.conf`; they override the defaults.
    pub settings: Vec<(String, String)>,
    /// Whether `fsync` is on, for measurements. Killing the server loses nothing either way.
    pub durable: bool,
    /// Folder of its programs, such as `initdb`. None: the one in `PATH`, that of `pg_config`, or Debian's
    /// newest.
    pub programs: Option<PathBuf>,
}

/// How to stop the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Roll back transactions, write everything to disk, and end.
    Fast,
    /// End at once. The next start recovers.
    Immediate,
}

/// A private server, running or stopped. Dropping it stops the server and removes its directory.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Option<Child>,
    bin: PathBuf,
    account: Option<Account>,
    port: u16,
    home: Home,
}

impl PrivatePostgres {
    /// Creates a cluster in a new temporary directory, starts it on a free port of 127.0.0.1, and returns
    /// when it accepts connections. As root it runs the server as `postgres` or `nobody`. Removes
    /// abandoned directories.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start. The message says what to do.
    pub fn start(options: Options) -> Result<Self, Error> {
        let bin = options.programs.clone().map_or_else(process::find_binaries, Ok)?;
        let account = Account::unprivileged()?;
        files::remove_abandoned();
        let home = Home::create(account.as_ref())?;
        process::initdb(&bin, account.as_ref(), &home)?;
        home.configure(&options)?;
        Self { server: None, bin, account, port: 0, home }.started()
    }

    /// Copies a running server, and starts the copy as its standby on a port of its own. It follows the
    /// server under the name `standby` (`application_name`), and can be read.
    ///
    /// # Errors
    /// When it cannot be copied, or the copy does not start.
    pub fn standby(&self) -> Result<Self, Error> {
        let account = Account::unprivileged()?;
        let home = Home::create(account.as_ref())?;
        process::basebackup(&self.bin, account.as_ref(), &home, self.port)?;
        home.configure_standby()?;
        Self { server: None, bin: self.bin.clone(), account, port: 0, home }.started()
    }

    /// Ends the recovery of a standby, and returns when it can be written to.
    ///
    /// # Errors
    /// When it is no standby.
    pub fn promote(&self) -> Result<(), Error> {
        let statement = "select pg_promote(true, 30)";
        process::execute(&self.url("postgres"), statement)
            .map_err(|source| Error::Statement { statement: statement.to_owned(), source })
    }

    /// Starts it on a free port.
    fn started(mut self) -> Result<Self, Error> {
        let mut tried = 1;
        loop {
            self.port = files::free_port();
            match self.start_again() {
                Err(Error::Ended { log, .. })
                    if tried < PORTS_TRIED && log.contains("Address already in use") =>
                {
                    tried += 1
                }
                result => return result.map(|()| self),
            }
        }
    }

    /// Starts a stopped or killed server with the same data and port, and returns when it accepts
    /// connections. Does nothing while it runs.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.as_ref().is_some_and(Child::runs) {
            return Ok(());
        }
        self.server = None;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.start_until(deadline) {
                // A process of the killed server is still ending, for example in a write to the disk. The
                // next try takes some ten milliseconds by itself.
                Err(Error::Ended { log, .. })
                    if log.contains("pre-existing shared memory block") && Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    fn start_until(&mut self, deadline: Instant) -> Result<(), Error> {
        let server = process::start(&self.bin, self.account.as_ref(), &self.home, self.port)?;
        while !self.home.server_is_ready(server.pid()) {
            if let Some(status) = server.ended_within(Duration::from_millis(10)) {
                return Err(Error::Ended { status, log: self.home.end_of_log() });
            }
            if Instant::now() > deadline {
                server.kill();
                return Err(Error::NotReady { log: self.home.end_of_log() });
            }
        }
        self.server = Some(server);
        Ok(())
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        if let Some(server) = self.server.take() {
            server.signal(match how {
                Stop::Fast => "INT",
                Stop::Immediate => "QUIT",
            });
            if server.ended_within(STOP_DEADLINE).is_none() {
                server.kill();
            }
        }
    }

    /// Kills the server and its processes with SIGKILL, like a crash, and waits for their end.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Creates an empty database.
    ///
    /// # Errors
    /// When a database of that name exists, or the server does not run.
    pub fn create_database(&self, name: &str) -> Result<(), Error> {
        let statement = format!("create database \"{}\"", name.replace('"', "\"\""));
        process::execute(&self.url("postgres"), &statement)
            .map_err(|source| Error::Statement { statement, source })
    }

    /// Address of a database over TCP. The name is not escaped.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Address of a database over the Unix socket, which only root and the server's account can use.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@localhost:{}/{database}?host={}&sslmode=disable",
            self.port,
            self.home.path().display()
        )
    }

    /// Port on 127.0.0.1. Does not change.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of data, socket and log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// How many statements sessions have sent in each of these databases, while [`LOGS_STATEMENTS`] was set.
    /// Reads the whole log, and blocks.
    #[must_use]
    pub fn count_statements(&self, databases: &[&str]) -> Vec<usize> {
        self.home.count_statements(databases)
    }

    /// Folder of its programs, such as `pg_dump`.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// Process id of the server, unless it is stopped.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.server.as_ref().map(Child::pid)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}
