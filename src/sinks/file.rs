//! The file sink: appends events to a file as JSON lines, at least once. The system may rotate files: the
//! sink opens the file by name for each batch, and creates it if it was moved away. Several relays may write
//! to one file: each locks it (`flock`) while it writes.

use std::{
    borrow::Cow,
    fs, io,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink, body, only, parse_config,
        template::Template,
    },
};

/// Appends to files in one folder.
#[derive(Debug)]
pub struct File {
    folder: PathBuf,
    connection: String,
    /// Held while writing, so that at most one thread waits for the disk.
    writing: Arc<Mutex<()>>,
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
        Ok(Self { folder: config.folder, connection: connection.to_owned(), writing: Arc::default() })
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
                        lines.push_str(&body::whole(&delivery.event));
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

    async fn append(&self, path: PathBuf, lines: String, sync: bool) -> Report {
        let writing = self.writing.clone().lock_owned().await;
        // The write completes even if this attempt is dropped, and the next attempt waits for it.
        let written = spawn_blocking(move || {
            let _writing = writing;
            write(&path, lines.as_bytes(), sync)
        });
        match written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => Outcome::Delivered.into(),
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge => Reason::DestinationFull,
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                        Reason::AccessDenied
                    }
                    io::ErrorKind::NotFound => Reason::TargetMissing,
                    _ => Reason::Refused,
                };
                Report::from(Outcome::Retry { reason, after: None }).with_answer(error)
            }
        }
    }
}

/// Appends all lines or none.
fn write(path: &Path, lines: &[u8], sync: bool) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().read(true).append(true).create(true).open(path)?;
    match file.lock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        _ => {}
    }
    let before = file.metadata()?.len();
    let mut last = *b"\n";
    if before > 0 {
        file.read_exact_at(&mut last, before - 1)?;
    }
    let written = (|| {
        // A killed relay may have left half a line, which must not be joined with ours.
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
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
    if written.is_err() {
        let _ = file.set_len(before);
    }
    written
}

fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
