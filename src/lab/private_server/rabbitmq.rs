//! A private RabbitMQ, with node, name server and cookie in its own directory. It takes seconds to start.

use std::{ffi::OsString, fs, io, net::TcpListener, path::Path};

use super::{Error, Kind, PrivateServer};

/// The server without Debian's wrapper, which would run it as another user and in the system's directories.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const MISSING: Error = Error::Missing { program: "rabbitmq-server", package: "rabbitmq-server" };

/// Lines that are added to its configuration.
const FURTHER: &str = "further.conf";

/// Starts RabbitMQ with the user guest and messages of at most 100,000 bytes. Returns when it listens,
/// shortly before it knows its users.
///
/// # Errors
/// When RabbitMQ is not installed or does not start.
pub fn start() -> Result<PrivateServer, Error> {
    start_with(|_| String::new())
}

/// Starts RabbitMQ with further lines of its configuration, which may depend on its directory.
///
/// # Errors
/// Those of [`start`].
pub fn start_with(further: impl FnOnce(&Path) -> String) -> Result<PrivateServer, Error> {
    if !Path::new(PROGRAM).is_file() {
        return Err(MISSING);
    }
    let kind = Kind { program: "sh", package: "rabbitmq-server", arguments };
    PrivateServer::start_in(kind, |directory| {
        // Without the file it does not start, as without those that `settings` writes.
        let _ = fs::write(directory.join(FURTHER), further(directory));
        Vec::new()
    })
}

fn arguments(directory: &Path, port: u16) -> Vec<OsString> {
    // Ignore errors: the script fails without the files, and the error contains its output.
    let _ = settings(directory, port);
    // Erlang's name server would remain as a daemon, so run it as a child. The other child removes the
    // directory if the owner is killed.
    let script = "cd \"$0\" && . ./environment || exit 1
                  (exec setpriv --pdeathsig KILL epmd -port $ERL_EPMD_PORT >epmd.log 2>&1) &
                  (tail --pid=$$ -f /dev/null; rm -rf \"$0\") >/dev/null 2>&1 &
                  exec \"$SERVER\"";
    ["-c".into(), script.into(), directory.into()].into()
}

fn settings(directory: &Path, port: u16) -> io::Result<()> {
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map(|address| address.port())
    };
    fs::write(directory.join("enabled_plugins"), "[].")?;
    let further = fs::read_to_string(directory.join(FURTHER))?;
    fs::write(
        directory.join("rabbitmq.conf"),
        format!(
            "listeners.tcp.local = 127.0.0.1:{port}\nmax_message_size = 100000\nlog.console.level = warning\n\
             {further}"
        ),
    )?;
    fs::write(
        directory.join("environment"),
        format!(
            "export SERVER={PROGRAM} HOME='{0}' ERL_EPMD_PORT={1} ERL_EPMD_ADDRESS=127.0.0.1 \
             RABBITMQ_DIST_PORT={2} RABBITMQ_NODENAME=private{port}@localhost \
             RABBITMQ_CONFIG_FILE='{0}/rabbitmq.conf' RABBITMQ_MNESIA_BASE='{0}/mnesia' \
             RABBITMQ_LOG_BASE='{0}/log' RABBITMQ_LOGS=- \
             RABBITMQ_ENABLED_PLUGINS_FILE='{0}/enabled_plugins' \
             RABBITMQ_PID_FILE='{0}/pid' RABBITMQ_CONF_ENV_FILE='{0}/none' RUNNING_UNDER_SYSTEMD=1 \
             NOTIFY_SOCKET= LC_ALL=C.UTF-8 \
             RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-start_epmd false \
             -kernel inet_dist_use_interface {{127,0,0,1}} +S 1:1'\n",
            directory.display(),
            free()?,
            free()?,
        ),
    )
}
