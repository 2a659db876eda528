//! Follows what the configuration and subscriptions refer to: files with addresses, passwords and tokens,
//! secrets, certificates. Reads no setting itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::{cli::config::Config, sink::secret::Secrets};

/// Interval of looking.
const EVERY: Duration = Duration::from_secs(5);
/// Time for which files must stay the same before they count: they may be written in several steps.
const SETTLED: Duration = Duration::from_secs(1);
/// Most files of the folder of secrets.
const MOST_FILES: usize = 10_000;
/// Bytes of a file that are compared; what follows them is not looked at.
const LARGEST: u64 = 1024 * 1024;

/// The contents of files, as digests. None: it cannot be read.
type Contents = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// What is followed, and what it was when it was last used.
#[derive(Debug)]
pub(super) struct Followed {
    files: Vec<PathBuf>,
    folder: Option<PathBuf>,
    used: Contents,
    /// What the last look found.
    found: Contents,
    /// What was last reported as unusable, so that it is reported once.
    refused: Option<Contents>,
    /// Files that were reported as unreadable.
    unreadable: BTreeSet<PathBuf>,
    /// Those of them that can be read again. What needs them may have been given up meanwhile.
    returned: Vec<String>,
}

/// Files that have changed.
#[derive(Debug)]
pub(super) enum Change {
    /// Only secrets of subscriptions, or one that was replaced long ago need not sign any more.
    Secrets(Vec<String>),
    /// Also what connections depend on.
    Connections(Vec<String>),
}

impl Followed {
    /// What this configuration refers to, as it is now. What was read of it before may be older.
    pub(super) async fn of(config: &Config) -> Self {
        let (files, folder) = (config.files.clone(), config.secrets.folder.clone());
        let used = read(files.clone(), folder.clone()).await;
        Self {
            files,
            folder,
            found: used.clone(),
            used,
            refused: None,
            unreadable: BTreeSet::new(),
            returned: Vec::new(),
        }
    }

    /// Waits until something has changed.
    pub(super) async fn changed(&mut self, secrets: &Secrets) -> Change {
        let mut looks = tokio::time::interval(EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if secrets.forget_replaced() {
                return Change::Secrets(Vec::new());
            }
            let found = self.look().await;
            if found == self.used && !self.returned.is_empty() {
                self.found = found;
                return Change::Secrets(std::mem::take(&mut self.returned));
            }
            if found == self.used || self.refused.as_ref() == Some(&found) {
                continue;
            }
            let mut settled = tokio::time::interval(SETTLED);
            settled.tick().await;
            settled.tick().await;
            if self.look().await != found {
                continue;
            }
            self.found = found;
            return self.change();
        }
    }

    fn change(&self) -> Change {
        let all: BTreeSet<&PathBuf> = self.found.keys().chain(self.used.keys()).collect();
        let changed = |path: &&PathBuf| self.found.get(*path) != self.used.get(*path);
        let changed: Vec<&PathBuf> = all.into_iter().filter(changed).collect();
        let is_of_connections = changed.iter().any(|path| self.files.contains(path));
        let names = changed.into_iter().map(|path| path.display().to_string()).collect();
        if is_of_connections { Change::Connections(names) } else { Change::Secrets(names) }
    }

    /// What was found is used from now on.
    pub(super) fn accept(&mut self) {
        self.used.clone_from(&self.found);
        self.refused = None;
    }

    /// Goes on with what was used before; what was found counts again when it changes once more.
    pub(super) fn refuse(&mut self) {
        self.refused = Some(self.found.clone());
    }

    /// The contents now. One that cannot be read, perhaps for a moment, is as it was, and keeps no change of
    /// another from being followed.
    async fn look(&mut self) -> Contents {
        let mut found = read(self.files.clone(), self.folder.clone()).await;
        for (path, content) in self.used.iter().filter(|(_, content)| content.is_some()) {
            let now = found.entry(path.clone()).or_default();
            if now.is_some() {
                if self.unreadable.remove(path) {
                    self.returned.push(path.display().to_string());
                }
                continue;
            }
            *now = *content;
            if self.unreadable.insert(path.clone()) {
                let file = path.display();
                tracing::warn!(%file, "a file cannot be read; what was read before is used");
            }
        }
        found
    }
}

async fn read(files: Vec<PathBuf>, folder: Option<PathBuf>) -> Contents {
    let reading = tokio::task::spawn_blocking(move || {
        let mut contents = Contents::new();
        for file in files {
            let content = digest(&file);
            contents.insert(file, content);
        }
        // A file of the folder that cannot be read concerns the subscriptions that name it.
        if let Some(folder) = folder {
            below(&folder, &mut contents, 3);
        }
        contents
    });
    reading.await.unwrap_or_default()
}

fn below(folder: &Path, contents: &mut Contents, depth: u8) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        // Kubernetes keeps what the names lead to in folders such as `..data`.
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
        if hidden || contents.len() > MOST_FILES {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                below(&path, contents, depth - 1);
            }
        } else if let Some(content) = digest(&path) {
            contents.insert(path, Some(content));
        }
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(Sha256::digest(&bytes).into())
}
