//! A private PostgreSQL in a temporary directory, for the demo, the benchmark and tests. Never for data that matters:
//! whoever can reach the loopback of this machine can reach it without a password.
//!
//! It stops when it is dropped, and also when its owner is killed: the kernel signals it when the thread that started it
//! ends (`setpriv --pdeathsig`), so a thread of its own starts it and lives as long as it does.
//! Everything here blocks; nothing needs a runtime, and all of it may be called inside one.

mod files;
mod process;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use files::Home;
pub(crate) use files::free_port;
use process::Account;

use crate::lab::private_server::child::Child;

/// The oldest major version that will do.
const OLDEST: u32 = 14;
/// How long a start may take, recovery after a crash included.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a stop may take before the server is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How often another port is tried when somebody was faster.
const PORTS_TRIED: u32 = 5;

/// Why there is no server, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none on this machine.
    #[error(
        "no PostgreSQL server of version {OLDEST} or newer was found; install one: sudo apt-get install postgresql"
    )]
    Missing,
    /// Running as root, and no way to be somebody else.
    #[error("PostgreSQL refuses to run as root, and {0}; run this as another user")]
    Root(&'static str),
    /// A file or directory.
    #[error("{doing} {path}")]
    File {
        /// What was done to it.
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be run at all.
    #[error("running {program}")]
    Program {
        /// Which one.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed; it said: {0}")]
    Initdb(String),
    /// The server ended while it started.
    #[error("the private PostgreSQL ended while starting ({status}); the end of its log: {log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines it wrote.
        log: String,
    },
    /// The server did not become ready.
    #[error("the private PostgreSQL was not ready after {} s; the end of its log: {log}", START_DEADLINE.as_secs())]
    NotReady {
        /// The last lines it wrote.
        log: String,
    },
    /// A statement failed.
    #[error("running {statement:?} on the private PostgreSQL")]
    Statement {
        /// Which one.
        statement: String,
        /// The cause.
        source: sqlx::Error,
    },
}

/// How the server is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further lines of `postgresql.conf`; they win over the defaults.
    pub settings: Vec<(String, String)>,
    /// Keep `fsync` on: for measurements, and for tests that pull the plug of the machine. Killing the server loses nothing either way.
    pub durable: bool,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Roll back, write everything out, end.
    Fast,
    /// End at once; the next start recovers.
    Immediate,
}

/// A running (or stopped) private server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Option<Child>,
    bin: PathBuf,
    account: Option<Account>,
    port: u16,
    home: Home,
}

impl PrivatePostgres {
    /// Creates a cluster in a new temporary directory and starts it on a free port of 127.0.0.1; returns when it answers.
    /// As root, it becomes `postgres` (or `nobody`) for that. Removes what dead owners left behind.
    ///
    /// # Errors
    /// When there is no server on this machine, or it does not start; the text says what to do.
    pub fn start(options: Options) -> Result<Self, Error> {
        let bin = process::find_binaries()?;
        let account = Account::unprivileged()?;
        files::remove_abandoned();
        let home = Home::create(account.as_ref())?;
        process::initdb(&bin, account.as_ref(), &home)?;
        home.configure(&options)?;
        let mut postgres = Self { server: None, bin, account, port: 0, home };
        let mut tried = 1;
        loop {
            postgres.port = files::free_port();
            match postgres.start_again() {
                Err(Error::Ended { log, .. })
                    if tried < PORTS_TRIED && log.contains("Address already in use") =>
                {
                    tried += 1
                }
                result => return result.map(|()| postgres),
            }
        }
    }

    /// Starts a stopped or killed server on the same data and port; returns when it answers. Does nothing while it runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.as_ref().is_some_and(Child::runs) {
            return Ok(());
        }
        self.server = None;
        let server = process::start(&self.bin, self.account.as_ref(), &self.home, self.port)?;
        let deadline = Instant::now() + START_DEADLINE;
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

    /// Stops it and waits until it has ended.
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

    /// Kills it and all its processes with SIGKILL, as a crash would, and waits until they are gone.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Creates an empty database.
    ///
    /// # Errors
    /// When there is one of that name, or the server does not run.
    pub fn create_database(&self, name: &str) -> Result<(), Error> {
        let statement = format!("create database \"{}\"", name.replace('"', "\"\""));
        process::execute(&self.url("postgres"), &statement)
            .map_err(|source| Error::Statement { statement, source })
    }

    /// The address of a database, over TCP. The name stands in it as it is.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The same over the Unix socket. With root's or the server's own rights only.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@localhost:{}/{database}?host={}&sslmode=disable",
            self.port,
            self.home.path().display()
        )
    }

    /// Its port on 127.0.0.1; the same as long as this value lives.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory: the data, the socket, the log. Removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// Its programs: `pg_basebackup`, `pg_dump`, …
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// The process of the server, while it was started and not stopped.
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
