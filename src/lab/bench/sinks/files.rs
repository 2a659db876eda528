//! A folder of JSON lines. The floor writes and syncs the same lines.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::Mutex,
};

use super::{Destination, sql};
use crate::sink::Connection;

/// A temporary folder.
pub(super) struct Folder {
    path: PathBuf,
    /// Bytes and lines read so far.
    seen: Mutex<(u64, u64)>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Destination for Folder {
    const KIND: &'static str = "file";
    const FLOOR: &'static str = "the same lines appended to a file, as many at a time as the relay's \
                                 batches, each batch synced to the disk";
    const CONFIG: &'static str = r#"{"path": "events.jsonl"}"#;

    async fn start() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "pgoutbox-bench-files-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        tokio::fs::create_dir(&path).await?;
        Ok(Self { path, seen: Mutex::default() })
    }

    fn connection(&self) -> Option<Connection> {
        let config = crate::sinks::file::Config { folder: self.path.clone() };
        Some(Connection::new::<crate::sinks::file::File>(config, "default"))
    }

    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
        let path = self.path.join("events.jsonl");
        let writing = tokio::task::spawn_blocking(move || {
            let mut sent = 0;
            while sent < events {
                let some: Vec<String> = (sent..events.min(sent + batch)).map(sql::event).collect();
                sent += u32::try_from(some.len())?;
                let mut file = fs::OpenOptions::new().append(true).create(true).open(&path)?;
                file.write_all((some.join("\n") + "\n").as_bytes())?;
                file.sync_data()?;
            }
            anyhow::Ok(())
        });
        writing.await?
    }

    async fn count(&self) -> anyhow::Result<u64> {
        std::future::ready(self.lines()).await
    }
}

impl Folder {
    fn lines(&self) -> anyhow::Result<u64> {
        let Ok(mut file) = fs::File::open(self.path.join("events.jsonl")) else { return Ok(0) };
        let mut seen = self.seen.lock().expect("counting does not panic");
        let mut more = Vec::new();
        file.seek(SeekFrom::Start(seen.0))?;
        seen.0 += u64::try_from(file.read_to_end(&mut more)?)?;
        seen.1 += u64::try_from(more.iter().filter(|byte| **byte == b'\n').count())?;
        Ok(seen.1)
    }
}
