//! The file sink: appends events to a file as JSON lines, at least once. The system may rotate files: the
//! sink opens the file by name for each batch, and creates it if it was moved away. Several relays may write
//! to one file: each locks it (`flock`) while it writes. Nothing counts as written unless the name still
//! means the file that has it: who moves or truncates a file may have copied it before.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink, body, only, parse_config, shortage,
        template::Template,
    },
};

/// Threads of one connection that may wait for the disk.
const WRITERS: usize = 16;
/// How long a batch waits for its turn at a file that others have locked.
const TURN: Duration = Duration::from_secs(5);
/// Shortest and longest time between two looks at a file that another process has locked.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How often a batch is written again because its file was moved or truncated meanwhile.
const REPEATS: usize = 8;

/// One turn after the other at a file.
type Turns = Arc<tokio::sync::Mutex<()>>;

/// Appends to files in one folder.
#[derive(Debug)]
pub struct File {
    folder: PathBuf,
    connection: String,
    /// Files that are being written, so that a file that is locked or stalled holds up no other.
    turns: Mutex<HashMap<PathBuf, Turns>>,
    writers: Arc<Semaphore>,
}

/// Folder of the files: `[sinks.file]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder, which must exist.
    pub folder: PathBuf,
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name of the file inside the folder.
    path: Template,
    /// Whether a batch is synced to the disk before it is reported as delivered.
    #[serde(default = "yes")]
    sync: bool,
    /// The path as written in the config; names the breaker.
    #[serde(skip)]
    place: String,
}

fn yes() -> bool {
    true
}

impl Configured for File {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        let folder = settings.path("folder");
        Some(Config { folder: settings.require("folder", folder)? })
    }

    fn open(config: Config, connection: &str) -> Result<Self, Problem> {
        Ok(Self {
            folder: config.folder,
            connection: connection.to_owned(),
            turns: Mutex::default(),
            writers: Arc::new(Semaphore::new(WRITERS)),
        })
    }
}

impl Sink for File {
    const KIND: &'static str = "file";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let mut target: Target = parse_config(config)?;
        target.place = config["path"].as_str().unwrap_or_default().to_owned();
        if target.path.fixed().is_some_and(|path| !stays_inside(path)) {
            return Err("config.path: must name a file inside the relay's folder, without \"..\""
                .to_owned()
                .into());
        }
        Ok(target)
    }

    /// One breaker for each path: a file that cannot be written must not stop the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("file:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        Duration::from_secs(15)
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let mut reports: Vec<Report> = Vec::with_capacity(deliveries.len());
        let mut rest = deliveries;
        while let Some(first) = rest.first() {
            // Consecutive deliveries for the same file are written together.
            let path = self.path(target, first);
            let (neighbours, others) =
                rest.split_at(rest.iter().take_while(|one| self.path(target, one) == path).count().max(1));
            let report = match path {
                Err(report) => report,
                Ok(path) => {
                    let mut lines = String::new();
                    for delivery in neighbours {
                        lines.push_str(&body::whole(&delivery.marked()));
                        lines.push('\n');
                    }
                    self.append(path, lines, target.sync).await
                }
            };
            reports.extend(std::iter::repeat_n(report, neighbours.len()));
            rest = others;
        }
        reports
    }

    async fn check(&self, _: &Target) -> Result<(), Problem> {
        let about = tokio::fs::metadata(&self.folder)
            .await
            .map_err(|error| format!("the folder {}: {error}", self.folder.display()))?;
        match (about.is_dir(), about.permissions().readonly()) {
            (true, false) => Ok(()),
            (false, _) => Err(format!("{} is not a folder", self.folder.display()).into()),
            (true, true) => Err(format!("the folder {} is read-only", self.folder.display()).into()),
        }
    }
}

impl File {
    fn path(&self, target: &Target, delivery: &Outgoing) -> Result<PathBuf, Report> {
        // A value of the event must not change the folder.
        let name = target
            .path
            .render_field("path", delivery, |value| Cow::Owned(value.replace(['/', '\\', '\0'], "_")))?;
        if !stays_inside(&name) {
            return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed })
                .with_answer("the path is outside the relay's folder"));
        }
        Ok(self.folder.join(name))
    }

    /// The turns at this file.
    fn turns(&self, path: &Path) -> Turns {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= 2 * WRITERS {
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(turns.entry(path.to_owned()).or_default())
    }

    async fn append(&self, path: PathBuf, lines: String, sync: bool) -> Report {
        let until = Instant::now() + TURN;
        let Ok(mut turn) = timeout_at(until, self.turns(&path).lock_owned()).await else { return busy() };
        let (path, lines): (Arc<Path>, Arc<str>) = (path.into(), lines.into());
        let mut look = LOOKS.0;
        loop {
            let Ok(Ok(writer)) = timeout_at(until, Arc::clone(&self.writers).acquire_owned()).await else {
                return busy();
            };
            let (path, lines) = (Arc::clone(&path), Arc::clone(&lines));
            // The write completes even if this attempt is dropped, and the next attempt waits for it.
            let written = spawn_blocking(move || {
                let written = write(&path, lines.as_bytes(), sync);
                drop(writer);
                (written, turn)
            });
            let written = match written.await {
                Ok((written, back)) => {
                    turn = back;
                    written
                }
                Err(error) => return failed(&io::Error::other(error)),
            };
            match written {
                Ok(State::Ours) => return Outcome::Delivered.into(),
                Ok(State::Locked) if Instant::now() < until => {
                    sleep_until((Instant::now() + look).min(until)).await;
                    look = (look * 2).min(LOOKS.1);
                }
                Ok(State::Locked) => return busy(),
                Ok(State::Moved) => {
                    let text = "the file was moved or truncated each time while it was written";
                    return failed(&io::Error::other(text));
                }
                Err(error) => return failed(&error),
            }
        }
    }
}

fn busy() -> Report {
    Report::from(Outcome::Retry { reason: Reason::Timeout, after: None })
        .with_answer(format!("the file was locked by others for {} s", TURN.as_secs()))
}

fn failed(error: &io::Error) -> Report {
    if shortage::of_system(error).is_some() {
        return shortage::report(error);
    }
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Reason::DestinationFull
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Reason::AccessDenied,
        io::ErrorKind::NotFound => Reason::TargetMissing,
        _ => Reason::Refused,
    };
    // No later attempt could have another name.
    if error.kind() == io::ErrorKind::InvalidFilename {
        return Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).with_answer(error);
    }
    Report::from(Outcome::Retry { reason, after: None }).with_answer(error)
}

/// What an open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The name means it, and we have its lock.
    Ours,
    /// Another process has its lock.
    Locked,
    /// The name means another file or none, or it is shorter than we left it.
    Moved,
}

/// Appends all lines or none to the file of this name.
fn write(path: &Path, lines: &[u8], sync: bool) -> io::Result<State> {
    let mut state = State::Moved;
    for _ in 0..REPEATS {
        let mut file = fs::OpenOptions::new().read(true).append(true).create(true).open(path)?;
        state = lock(&file, path)?;
        if state == State::Ours {
            let end = append(&mut file, path, lines, sync)?;
            state = after(&file, path, end)?;
        }
        if state != State::Moved {
            break;
        }
    }
    Ok(state)
}

/// Takes the lock of a file, which its name may no longer mean.
fn lock(file: &fs::File, path: &Path) -> io::Result<State> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(State::Locked),
        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    after(file, path, 0)
}

/// Whether the name still means a file, and it has this many bytes.
fn after(file: &fs::File, path: &Path, end: u64) -> io::Result<State> {
    let about = file.metadata()?;
    let named = match fs::metadata(path) {
        Ok(named) => named,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Moved),
        Err(error) => return Err(error),
    };
    let is_same = (about.dev(), about.ino()) == (named.dev(), named.ino());
    let is_whole = !about.is_file() || about.len() >= end;
    Ok(if is_same && is_whole { State::Ours } else { State::Moved })
}

/// Appends all lines or none. Returns where they end.
fn append(file: &mut fs::File, path: &Path, lines: &[u8], sync: bool) -> io::Result<u64> {
    let before = file.metadata()?.len();
    let mut last = *b"\n";
    if before > 0 && file.read_exact_at(&mut last, before - 1).is_err() {
        // Truncated just now.
        last = *b"\n";
    }
    // A killed relay may have left half a line, which must not be joined with ours.
    let line_break: &[u8] = if last == *b"\n" { b"" } else { b"\n" };
    let written = (|| {
        file.write_all(line_break)?;
        file.write_all(lines)?;
        if sync {
            file.sync_data()?;
            if before == 0 {
                // A new file is durable only when its folder is synced too.
                fs::File::open(path.parent().unwrap_or(path))?.sync_all()?;
            }
        }
        Ok(())
    })();
    if let Err(error) = written {
        // Longer, it would have a hole.
        if file.metadata().is_ok_and(|about| about.len() > before) {
            let _ = file.set_len(before);
        }
        return Err(error);
    }
    Ok(before + (line_break.len() + lines.len()) as u64)
}

fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path) -> fs::File {
        fs::OpenOptions::new().read(true).append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn a_file_that_was_moved_removed_or_replaced_after_it_was_opened_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let file = opened(&path);
        assert_eq!(lock(&file, &path).unwrap(), State::Ours);
        assert_eq!(lock(&opened(&path), &path).unwrap(), State::Locked);
        fs::rename(&path, folder.path().join("old")).unwrap();
        assert_eq!(lock(&file, &path).unwrap(), State::Moved, "the name means nothing");
        let _other = opened(&path);
        assert_eq!(lock(&file, &path).unwrap(), State::Moved, "the name means another file");
    }

    #[test]
    fn what_was_written_counts_only_while_the_name_means_it_and_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut file = opened(&path);
        let end = append(&mut file, &path, b"a line\n", false).unwrap();
        assert_eq!(after(&file, &path, end).unwrap(), State::Ours);
        opened(&path).set_len(0).unwrap();
        assert_eq!(after(&file, &path, end).unwrap(), State::Moved, "truncated");
        let end = append(&mut file, &path, b"a line\n", false).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(after(&file, &path, end).unwrap(), State::Moved, "removed");
    }

    #[test]
    fn a_path_cannot_leave_the_folder() {
        assert!(["a.jsonl", "a/b.jsonl", "..a"].into_iter().all(stays_inside));
        assert!(
            ["", "..", "/etc/passwd", "a/../../b", "./../b", "a\0"]
                .into_iter()
                .all(|path| !stays_inside(path))
        );
    }
}
