//! Finds and starts the programs of a private server.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    Error, OLDEST,
    account::{Account, output},
    files::Home,
};
use crate::lab::private_server::child::{self, Child};

/// The directory of `initdb` and `postgres`: the one in PATH, that of `pg_config`, or Debian's newest.
pub(super) fn find_binaries() -> Result<PathBuf, Error> {
    let path_from = |command: &mut Command| {
        let text = String::from_utf8(output(command)?).ok()?;
        Some(PathBuf::from(text.trim()))
    };
    let in_path = path_from(Command::new("sh").args(["-c", "command -v postgres"]))
        .and_then(|postgres| fs::canonicalize(postgres).ok())
        .and_then(|postgres| postgres.parent().map(Path::to_owned));
    let configured = path_from(Command::new("pg_config").arg("--bindir"));
    if let Some(bin) = [in_path, configured]
        .into_iter()
        .flatten()
        .find(|bin| version(bin).is_some_and(|version| version >= OLDEST))
    {
        return Ok(bin);
    }
    let packaged = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    packaged
        .filter_map(|bin| Some((version(&bin)?, bin)))
        .filter(|(version, _)| *version >= OLDEST)
        .max()
        .map(|(_, bin)| bin)
        .ok_or(Error::Missing)
}

/// The major version of the server in a directory that contains `initdb`.
fn version(bin: &Path) -> Option<u32> {
    if !bin.join("initdb").is_file() {
        return None;
    }
    major_version(&String::from_utf8(output(Command::new(bin.join("postgres")).arg("--version"))?).ok()?)
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`: 15.
fn major_version(text: &str) -> Option<u32> {
    let number = text.split_whitespace().nth(2)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A command that runs a program as the account. With `owned` the kernel interrupts it when the starting
/// thread ends.
fn command(bin: &Path, program: &str, account: Option<&Account>, home: &Home, owned: bool) -> Command {
    let setpriv = account.is_some() || (owned && child::can_own());
    let mut command = if setpriv { Command::new("setpriv") } else { Command::new(bin.join(program)) };
    if setpriv {
        if let Some(Account { uid, gid }) = account {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        }
        if owned {
            command.args(["--pdeathsig", "INT"]);
        }
        command.arg(bin.join(program));
    }
    // Its own process group: Ctrl-C in a terminal must not stop the server before us.
    command.current_dir(home.path()).stdin(Stdio::null()).process_group(0);
    command
}

/// Creates the cluster.
pub(super) fn initdb(bin: &Path, account: Option<&Account>, home: &Home) -> Result<(), Error> {
    let output = command(bin, "initdb", account, home, true)
        .args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
            "-D",
        ])
        .arg(home.data())
        .output()
        .map_err(|source| Error::Program { program: bin.join("initdb").display().to_string(), source })?;
    succeeded(output).map_err(Error::Initdb)
}

/// Copies the cluster of the server on this port, as a standby of it.
pub(super) fn basebackup(bin: &Path, account: Option<&Account>, home: &Home, port: u16) -> Result<(), Error> {
    let program = "pg_basebackup";
    let primary = format!("host=127.0.0.1 port={port} user=postgres application_name=standby");
    let output = command(bin, program, account, home, true)
        .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "-d"])
        .arg(primary)
        .arg("-D")
        .arg(home.data())
        .output()
        .map_err(|source| Error::Program { program: bin.join(program).display().to_string(), source })?;
    succeeded(output).map_err(Error::Basebackup)
}

/// What a program printed, if it failed.
fn succeeded(output: Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr];
    Err(printed.map(|text| String::from_utf8_lossy(&text).trim().replace('\n', " | ")).join(" | "))
}

/// Starts the server. It is not ready yet.
pub(super) fn start(bin: &Path, account: Option<&Account>, home: &Home, port: u16) -> Result<Child, Error> {
    let mut command = command(bin, "postgres", account, home, true);
    command
        .arg("-D")
        .arg(home.data())
        .args(["-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(home.log()?);
    Child::start(command, "private-postgres")
        .map_err(|source| Error::Program { program: bin.join("postgres").display().to_string(), source })
}

/// Executes a statement on a new connection, in its own thread: the caller may be inside a runtime.
pub(super) fn execute(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(sqlx::Error::Io)?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(url).await?;
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
                connection.close().await
            })
        });
        work.join().unwrap_or(Err(sqlx::Error::WorkerCrashed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_parsed() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18.4\n", Some(18)),
            ("postgres (PostgreSQL) 19devel\n", Some(19)),
            ("postgres\n", None),
        ] {
            assert_eq!(major_version(text), version, "{text}");
        }
    }
}
