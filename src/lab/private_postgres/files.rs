//! The directory of a private server: creates, configures, reads and removes it. Starts no process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

use super::{Error, Options, account::Account};

/// Prefix of directories, followed by the owner's process id and a random number.
const PREFIX: &str = "pgoutbox-postgres-";
/// Longest path of the directory, in bytes. The path of a Unix socket may have about 100 bytes, with
/// `/.s.PGSQL.12345`.
const LONGEST_DIRECTORY: usize = 80;

/// The directory of a server. Dropping it removes the directory.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    /// Locked while the owner runs, so that the directory does not count as abandoned.
    _owned: File,
}

impl Home {
    /// Creates the directory, accessible only for the account that runs the server.
    pub(super) fn create(account: Option<&Account>) -> Result<Self, Error> {
        let path = base().join(format!("{PREFIX}{}-{:08x}", std::process::id(), rand::random::<u32>()));
        let failed = |doing| {
            let path = path.clone();
            move |source| Error::File { doing, path, source }
        };
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("creating the directory"))?;
        let owned = File::create(path.join("owner")).and_then(|file| file.lock().map(|()| file));
        let home = Self { _owned: owned.map_err(failed("locking the file owner in"))?, path: path.clone() };
        if let Some(account) = account {
            chown(&path, Some(account.uid), Some(account.gid)).map_err(failed("changing the owner of"))?;
        }
        Ok(home)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Opens the log file for the server's standard error.
    pub(super) fn log(&self) -> Result<File, Error> {
        let path = self.path.join("log");
        OpenOptions::new().create(true).append(true).open(&path).map_err(|source| Error::File {
            doing: "opening",
            path,
            source,
        })
    }

    /// The last lines of the log, joined to one line.
    pub(super) fn end_of_log(&self) -> String {
        let log = fs::read(self.path.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// How many statements sessions have sent in each of these databases, while
    /// [`LOGS_STATEMENTS`](super::LOGS_STATEMENTS) was set.
    pub(super) fn count_statements(&self, databases: &[&str]) -> Vec<usize> {
        let log = fs::read(self.path.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut counts = vec![0; databases.len()];
        for line in log.lines() {
            let Some((database, said)) = line.split_once(" LOG:  ") else { continue };
            if said.starts_with("execute ") || said.starts_with("statement: ") {
                let place = databases.iter().position(|one| *one == database);
                place.into_iter().for_each(|place| counts[place] += 1);
            }
        }
        counts
    }

    /// Writes `postgresql.conf` and `pg_hba.conf` of a new cluster.
    pub(super) fn configure(&self, options: &Options) -> Result<(), Error> {
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", self.path.display().to_string()),
            ("max_connections", "300".to_owned()),
            ("max_prepared_transactions", "50".to_owned()),
        ];
        if !options.durable {
            settings.push(("fsync", "off".to_owned()));
            settings.push(("full_page_writes", "off".to_owned()));
        }
        settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut text = String::new();
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        self.write("postgresql.conf", true, &text)?;
        self.write(
            "pg_hba.conf",
            false,
            "local all all trust\nhost all all 127.0.0.1/32 trust\n\
                         local replication all trust\nhost replication all 127.0.0.1/32 trust\n",
        )
    }

    /// Adds to the `postgresql.conf` of a copied cluster what differs from the original.
    pub(super) fn configure_standby(&self) -> Result<(), Error> {
        let socket = self.path.display().to_string().replace('\'', "''");
        self.write("postgresql.conf", true, &format!("unix_socket_directories = '{socket}'\n"))
    }

    fn write(&self, name: &str, append: bool, text: &str) -> Result<(), Error> {
        let path = self.data().join(name);
        let file = OpenOptions::new().append(append).write(true).truncate(!append).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|source| Error::File {
            doing: "writing",
            path,
            source,
        })
    }

    /// Whether the server with this process id accepts connections. Reads the first and eighth line of
    /// `postmaster.pid`, as `pg_ctl --wait` does.
    pub(super) fn server_is_ready(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid")) else { return false };
        let mut lines = text.lines();
        lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
            && lines.nth(6).map(str::trim) == Some("ready")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Ignore errors: the next start removes abandoned directories.
        let _ = remove(&self.path);
    }
}

/// Removes directories of owners that no longer run.
pub(super) fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(base()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if owner.parse::<u32>().is_err() || Path::new("/proc").join(owner).exists() {
            continue;
        }
        // Process ids of other containers mean nothing here, so check the lock too.
        let in_use = File::open(entry.path().join("owner")).is_ok_and(|file| file.try_lock().is_err());
        if !in_use {
            let _ = remove(&entry.path());
        }
    }
}

/// Removes a directory. Tries twice: a server that is still ending may add a file meanwhile.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path).or_else(|_| fs::remove_dir_all(path))
}

fn base() -> PathBuf {
    let default = std::env::temp_dir();
    let room = LONGEST_DIRECTORY.saturating_sub(PREFIX.len() + "4194304-01234567".len() + 1);
    if default.as_os_str().len() <= room { default } else { PathBuf::from("/tmp") }
}

/// A free port, below the range of ports for outgoing connections, so that none of those takes it while the
/// server is stopped.
pub(crate) fn free_port() -> u16 {
    let mut port = 0;
    for _ in 0..100 {
        port = rand::random_range(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            break;
        }
    }
    port
}
