//! A server of one's own in a temporary directory, of any kind that is one program and one port: brokers for the benchmark
//! and tests. It is killed when it is dropped, and also when its owner is. Everything here blocks.

pub(crate) mod child;
pub mod rabbitmq;

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use child::Child;

use crate::lab::private_postgres::free_port;

/// How long a start may take. RabbitMQ takes 5 s, and five times that on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long a stop may take before the server is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How often another port is tried when somebody was faster.
const PORTS_TRIED: u32 = 5;

/// Why there is no server, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not on this machine.
    #[error("{program} is missing; install it: sudo apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A file, a directory or a process.
    #[error("starting {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// It ended, or did not answer in time.
    #[error("{program} did not answer; the end of what it said: {said}")]
    NoAnswer {
        /// The program.
        program: &'static str,
        /// Its last lines.
        said: String,
    },
}

/// Which program, and how it is told its directory and its port.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The program: its name, or its path.
    pub program: &'static str,
    /// Debian's package.
    pub package: &'static str,
    /// Its arguments, given its directory and its port.
    pub arguments: fn(&Path, u16) -> Vec<OsString>,
}

/// A running (or stopped) server on 127.0.0.1. Dropping it kills it and removes its directory.
#[derive(Debug)]
pub struct PrivateServer {
    kind: Kind,
    path: PathBuf,
    more: Vec<OsString>,
    server: Option<Child>,
    port: u16,
    directory: PathBuf,
}

impl PrivateServer {
    /// Starts it on a free port, with further arguments; returns when its port can be connected to.
    ///
    /// # Errors
    /// When it is not on this machine or does not start; the text says what to do.
    pub fn start(kind: Kind, more: &[&str]) -> Result<Self, Error> {
        Self::start_in(kind, |_| more.iter().map(Into::into).collect())
    }

    /// The same with arguments that depend on its directory; what it needs there can be written first.
    ///
    /// # Errors
    /// As above.
    pub fn start_in(kind: Kind, more: impl FnOnce(&Path) -> Vec<OsString>) -> Result<Self, Error> {
        let path =
            find(kind.program).ok_or(Error::Missing { program: kind.program, package: kind.package })?;
        let name = path.file_name().unwrap_or_default().display();
        let directory = std::env::temp_dir().join(format!(
            "pgoutbox-{name}-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        fs::create_dir(&directory).map_err(|source| Error::Start { program: kind.program, source })?;
        let mut server = Self { kind, path, more: more(&directory), server: None, port: 0, directory };
        let mut tried = 1;
        loop {
            server.port = free_port();
            match server.start_again() {
                Err(Error::NoAnswer { .. })
                    if tried < PORTS_TRIED && server.said().contains("ddress already in use") =>
                {
                    tried += 1
                }
                result => return result.map(|()| server),
            }
        }
    }

    /// Starts a stopped or killed server on the same directory and port; returns when it answers. Does nothing while it runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.as_ref().is_some_and(Child::runs) {
            return Ok(());
        }
        self.server = None;
        let program = self.kind.program;
        let failed = |source| Error::Start { program, source };
        let log = fs::File::create(self.directory.join("said")).map_err(failed)?;
        let mut command = if child::can_own() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(&self.path);
            command
        } else {
            Command::new(&self.path)
        };
        command.args((self.kind.arguments)(&self.directory, self.port)).args(&self.more);
        command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0);
        let server = Child::start(command, program).map_err(failed)?;
        let deadline = Instant::now() + START_DEADLINE;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            if server.ended_within(Duration::from_millis(10)).is_some() || Instant::now() > deadline {
                return Err(Error::NoAnswer { program, said: self.said() });
            }
        }
        // Somebody else's server may have answered in place of ours, which then finds its port taken.
        if server.ended_within(Duration::from_millis(20)).is_some() {
            return Err(Error::NoAnswer { program, said: self.said() });
        }
        self.server = Some(server);
        Ok(())
    }

    /// Asks it to stop, and waits until it has ended.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal("TERM");
            if server.ended_within(STOP_DEADLINE).is_none() {
                server.kill();
            }
        }
    }

    /// Kills it, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Stops its clock and waits until it stands still: connections stay, and nothing answers any more.
    pub fn freeze(&self) {
        if let Some(server) = &self.server {
            server.freeze();
        }
    }

    /// The opposite.
    pub fn thaw(&self) {
        if let Some(server) = &self.server {
            server.signal("CONT");
        }
    }

    /// Its port; the same as long as this value lives.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory, removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The last lines of what it said since it was started.
    #[must_use]
    pub fn said(&self) -> String {
        let said = fs::read(self.directory.join("said")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where a program is; daemons stand in folders that the PATH of a user may lack.
fn find(program: &str) -> Option<PathBuf> {
    let path = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let in_path = PathBuf::from(String::from_utf8(path.stdout).ok()?.trim());
    [in_path, Path::new("/usr/sbin").join(program), Path::new("/usr/local/sbin").join(program)]
        .into_iter()
        .find(|path| path.is_file())
}
