//! A private server in a temporary directory, of any kind with one program and one port: brokers for the
//! benchmark and tests. It is killed when it is dropped, and also when its owner is killed. All functions
//! block.

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

/// Deadline of a start. RabbitMQ takes 5 s, and five times that on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// Time after which a server that does not stop is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Most ports that are tried if one is taken meanwhile.
const PORTS_TRIED: u32 = 5;

/// Why the server cannot be started, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not installed.
    #[error("{program} is missing; install it: sudo apt-get install {package}")]
    Missing {
        /// Name of the program.
        program: &'static str,
        /// Debian package of the program.
        package: &'static str,
    },
    /// An operation on a file or process failed.
    #[error("starting {program}")]
    Start {
        /// Name of the program.
        program: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The server ended, or did not accept connections in time.
    #[error("{program} did not answer; the end of its output: {output}")]
    NoAnswer {
        /// Name of the program.
        program: &'static str,
        /// Last lines of its output.
        output: String,
    },
}

/// A kind of server: its program and arguments.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name or path of the program.
    pub program: &'static str,
    /// Debian package of the program.
    pub package: &'static str,
    /// Arguments for a directory and a port.
    pub arguments: fn(&Path, u16) -> Vec<OsString>,
}

/// A server on 127.0.0.1, running or stopped. Dropping it kills the server and removes its directory.
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
    /// Starts a server on a free port with further arguments, and returns when the port accepts
    /// connections.
    ///
    /// # Errors
    /// When the program is not installed or does not start. The message says what to do.
    pub fn start(kind: Kind, more: &[&str]) -> Result<Self, Error> {
        Self::start_in(kind, |_| more.iter().map(Into::into).collect())
    }

    /// Starts a server with arguments that depend on its directory. `more` may write files there.
    ///
    /// # Errors
    /// Those of [`PrivateServer::start`].
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
                    if tried < PORTS_TRIED && server.output().contains("ddress already in use") =>
                {
                    tried += 1
                }
                result => return result.map(|()| server),
            }
        }
    }

    /// Starts a stopped or killed server with the same directory and port, and returns when it accepts
    /// connections. Does nothing while it runs.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.as_ref().is_some_and(Child::runs) {
            return Ok(());
        }
        self.server = None;
        let program = self.kind.program;
        let failed = |source| Error::Start { program, source };
        let log = fs::File::create(self.directory.join("output")).map_err(failed)?;
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
                return Err(Error::NoAnswer { program, output: self.output() });
            }
        }
        // Another server may have answered; ours then ends because its port is taken.
        if server.ended_within(Duration::from_millis(20)).is_some() {
            return Err(Error::NoAnswer { program, output: self.output() });
        }
        self.server = Some(server);
        Ok(())
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal("TERM");
            if server.ended_within(STOP_DEADLINE).is_none() {
                server.kill();
            }
        }
    }

    /// Kills the server, like a crash, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Freezes the server: connections stay open but nothing answers.
    pub fn freeze(&self) {
        if let Some(server) = &self.server {
            server.freeze();
        }
    }

    /// Continues a frozen server.
    pub fn thaw(&self) {
        if let Some(server) = &self.server {
            server.signal("CONT");
        }
    }

    /// Port on 127.0.0.1. Does not change.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of the server.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Last lines of its output since it was started.
    #[must_use]
    pub fn output(&self) -> String {
        let output = fs::read(self.directory.join("output")).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The path of a program. Also searches folders of daemons, which a user's PATH may not contain.
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
