//! The file sink: events as JSON lines at the end of a file, delivered at least once. Rotation is left to the system: the file
//! is opened by its name for each batch, so one that was moved away gets a successor.

use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{fs, io::AsyncWriteExt, sync::Mutex};

use super::{Batch, Configured, Report, Sink, body, only, parse_config, template::Template};
use crate::{
    config::Settings,
    delivery::Delivery,
    verdict::{Outcome, Reason},
};

/// Writes into files of one folder.
#[derive(Debug)]
pub struct File {
    folder: PathBuf,
    connection: String,
    /// One writer at a time: lines must not mix, and what was written in part is taken back.
    writing: Mutex<()>,
}

/// `[sinks.file]`
#[derive(Debug, Clone)]
pub struct Config {
    folder: PathBuf,
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The file's name inside the folder.
    path: Template,
    /// Whether a batch counts only when it is on the disk.
    #[serde(default = "yes")]
    sync: bool,
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

    fn open(config: Config, connection: &str) -> Result<Self, String> {
        Ok(Self { folder: config.folder, connection: connection.to_owned(), writing: Mutex::default() })
    }
}

impl Sink for File {
    const KIND: &'static str = "file";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, String> {
        let target: Target = parse_config(config)?;
        if target.path.fixed().is_some_and(|path| !stays_inside(path)) {
            return Err("config.path: it must name a file inside the relay's folder, without \"..\"".to_owned());
        }
        Ok(target)
    }

    fn destination(&self, _: &Target) -> Option<String> {
        Some(format!("file:{}", self.connection))
    }

    fn deadline(&self, _: &Target) -> Duration {
        Duration::from_secs(15)
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Delivery) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Delivery]) -> Vec<Report> {
        let mut reports: Vec<Report> = Vec::with_capacity(deliveries.len());
        let mut rest = deliveries;
        while let Some(first) = rest.first() {
            // Neighbours with the same file are written together.
            let path = self.path(target, first);
            let (neighbours, others) = rest.split_at(rest.iter().take_while(|one| self.path(target, one) == path).count().max(1));
            let report = match path {
                Err(report) => report,
                Ok(path) => {
                    let mut lines = String::new();
                    for delivery in neighbours {
                        lines.push_str(&body::whole(&delivery.event));
                        lines.push('\n');
                    }
                    self.append(&path, lines.as_bytes(), target.sync).await
                }
            };
            reports.extend(std::iter::repeat_n(report, neighbours.len()));
            rest = others;
        }
        reports
    }

    async fn check(&self, _: &Target) -> Result<(), String> {
        let about = fs::metadata(&self.folder).await.map_err(|error| format!("the folder {}: {error}", self.folder.display()))?;
        match (about.is_dir(), about.permissions().readonly()) {
            (true, false) => Ok(()),
            (false, _) => Err(format!("{} is not a folder", self.folder.display())),
            (true, true) => Err(format!("the folder {} is read-only", self.folder.display())),
        }
    }
}

impl File {
    fn path(&self, target: &Target, delivery: &Delivery) -> Result<PathBuf, Report> {
        // A value of the event is one name: it opens no folder and leaves none.
        let name = target.path.render_field("path", delivery, |value| Cow::Owned(value.replace(['/', '\\', '\0'], "_")))?;
        if !stays_inside(&name) {
            return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).saying("the path leaves the relay's folder"));
        }
        Ok(self.folder.join(name))
    }

    async fn append(&self, path: &Path, lines: &[u8], sync: bool) -> Report {
        let _writing = self.writing.lock().await;
        match write(path, lines, sync).await {
            Ok(()) => Outcome::Delivered.into(),
            Err(error) => {
                let reason = match error.kind() {
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
                        Reason::DestinationFull
                    }
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Reason::AccessDenied,
                    std::io::ErrorKind::NotFound => Reason::TargetMissing,
                    _ => Reason::Refused,
                };
                Report::from(Outcome::Retry { reason, after: None }).saying(error)
            }
        }
    }
}

async fn write(path: &Path, lines: &[u8], sync: bool) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).await?;
    let before = file.metadata().await?.len();
    let written = async {
        file.write_all(lines).await?;
        file.flush().await?;
        if sync { file.sync_data().await } else { Ok(()) }
    };
    let result = written.await;
    if result.is_err() {
        // Half a line would spoil the one after it.
        let _ = file.set_len(before).await;
    }
    result
}

fn stays_inside(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_the_folder() {
        assert!(["a.jsonl", "a/b.jsonl", "..a"].into_iter().all(stays_inside));
        assert!(["", "..", "/etc/passwd", "a/../../b", "./../b", "a\0"].into_iter().all(|path| !stays_inside(path)));
    }
}
