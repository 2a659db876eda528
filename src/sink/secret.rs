//! References to secrets, `env:NAME` and `file:NAME`: read when they are used, never printed.
//!
//! Authors of subscriptions must not read the relay's own credentials. So their references are limited to
//! variables with one prefix and files in one folder ([`Secrets`]); those of the operator are not
//! ([`operator_secret`]). Only this file and `cli/config` read the environment.

use std::{
    collections::HashMap,
    fmt, fs,
    io::Read,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};

/// Prefix that the name in a subscription's `env:NAME` must have.
pub const PREFIX: &str = "PGOUTBOX_SECRET_";

/// How long a secret whose file was replaced still signs, beside the new one.
const OVERLAP: Duration = Duration::from_secs(24 * 3_600);

/// Replaced secrets of one reference that still sign: with a mistake in between, also the one before it.
const MOST_REPLACED: usize = 2;

/// Largest file of a secret, in bytes.
const LONGEST_FILE: u64 = 16 * 1024;

/// Source of variables: the environment of the process, or a stub in tests.
type Environment = dyn Fn(&str) -> Option<SecretString> + Send + Sync;

/// Resolves the references of subscriptions.
#[derive(Clone)]
pub struct Secrets {
    folder: Option<PathBuf>,
    environment: Arc<Environment>,
    /// What was last used to sign, by its reference, and what it replaced less than [`OVERLAP`] ago.
    signing: Arc<Mutex<HashMap<String, Signing>>>,
}

struct Signing {
    secret: SecretString,
    /// The newest first.
    replaced: Vec<(SecretString, Instant)>,
}

impl Signing {
    /// Forgets what was replaced too long ago. Returns whether there was something.
    fn expire(&mut self) -> bool {
        let before = self.replaced.len();
        self.replaced.retain(|(_, at)| at.elapsed() < OVERLAP);
        self.replaced.len() < before
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Resolves variables of this process and files of one folder. Without a folder `file:NAME` is refused.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self::with_environment(folder, process_environment)
    }

    /// Resolves variables from another source.
    #[must_use]
    pub fn with_environment(
        folder: Option<PathBuf>,
        environment: impl Fn(&str) -> Option<SecretString> + Send + Sync + 'static,
    ) -> Self {
        Self { folder, environment: Arc::new(environment), signing: Arc::default() }
    }

    /// Like [`Secrets::resolve`], for a secret that signs: with the ones that it has replaced lately, at most
    /// two, so that receivers have time to follow.
    ///
    /// # Errors
    /// Those of [`Secrets::resolve`].
    pub fn resolve_for_signing(&self, reference: &str) -> Result<Vec<SecretString>, String> {
        let secret = self.resolve(reference)?;
        let mut signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signing
            .entry(reference.to_owned())
            .or_insert_with(|| Signing { secret: secret.clone(), replaced: Vec::new() });
        known.expire();
        if known.secret.expose_secret() != secret.expose_secret() {
            let replaced = std::mem::replace(&mut known.secret, secret.clone());
            known.replaced.retain(|(before, _)| before.expose_secret() != secret.expose_secret());
            known.replaced.insert(0, (replaced, Instant::now()));
            known.replaced.truncate(MOST_REPLACED);
        }
        let replaced = known.replaced.iter().map(|(secret, _)| secret.clone());
        Ok(std::iter::once(secret).chain(replaced).collect())
    }

    /// Forgets secrets that were replaced more than a day ago (`OVERLAP`). Returns whether there was one.
    pub fn forget_replaced(&self) -> bool {
        let mut signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        // Of all, not only up to the first that has one.
        signing.values_mut().filter_map(|one| one.expire().then_some(())).count() > 0
    }

    /// Whether a text is a reference.
    #[must_use]
    pub fn is_reference(text: &str) -> bool {
        text.starts_with("env:") || text.starts_with("file:")
    }

    /// The secret that a subscription refers to.
    ///
    /// # Errors
    /// A message with the reference and how to fix it, without any part of a secret.
    pub fn resolve(&self, reference: &str) -> Result<SecretString, String> {
        if let Some(name) = reference.strip_prefix("env:") {
            if !name.starts_with(PREFIX) || !is_variable_name(name) {
                return Err(format!(
                    "{reference:?} is refused: subscriptions may use only variables that begin with {PREFIX}"
                ));
            }
            return (self.environment)(name)
                .and_then(|value| trimmed(value.expose_secret()))
                .ok_or_else(|| format!("{reference:?} is not set in the relay's environment"));
        }
        if let Some(name) = reference.strip_prefix("file:") {
            return self.file(name).map_err(|problem| format!("{reference:?} {problem}"));
        }
        Err(format!("write a reference, env:{PREFIX}NAME or file:NAME, instead of the secret itself"))
    }

    fn file(&self, name: &str) -> Result<SecretString, String> {
        let folder = self.folder.as_deref().ok_or("is refused: the relay has no secrets.folder")?;
        let plain =
            !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || name.contains(['\\', '\0']) {
            return Err("is refused: must name a file inside secrets.folder".to_owned());
        }
        // The same message for a missing file and one outside the folder: subscriptions must not probe the
        // disk.
        let unreadable = || "cannot be read as a file inside secrets.folder".to_owned();
        let folder = folder.canonicalize().map_err(|_| unreadable())?;
        let path = folder.join(name).canonicalize().map_err(|_| unreadable())?;
        if !path.starts_with(&folder) {
            return Err(unreadable());
        }
        read(&path).map_err(|_| unreadable())
    }
}

/// The secret that the operator's configuration refers to: any variable, any file.
///
/// # Errors
/// A message with the reference and how to fix it.
pub fn operator_secret(reference: &str) -> Result<SecretString, String> {
    if let Some(name) = reference.strip_prefix("env:") {
        return process_environment(name)
            .ok_or_else(|| format!("{reference:?} is not set in the environment"));
    }
    if let Some(path) = reference.strip_prefix("file:") {
        return read(Path::new(path)).map_err(|problem| format!("{reference:?} cannot be read: {problem}"));
    }
    Err("write a reference, env:NAME or file:/path".to_owned())
}

fn process_environment(name: &str) -> Option<SecretString> {
    if !is_variable_name(name) {
        return None;
    }
    trimmed(&std::env::var_os(name)?.into_string().ok()?)
}

/// What was meant by a variable or a file: without white space and a byte order mark at its ends, which
/// editors, shells and files of variables leave there. None if nothing is left.
pub fn trimmed(text: &str) -> Option<SecretString> {
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}');
    (!text.is_empty()).then(|| SecretString::from(text))
}

/// Reads a regular file without white space at its ends.
fn read(path: &Path) -> std::io::Result<SecretString> {
    let invalid = |problem| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    // Check before opening: opening a pipe would wait for its writer.
    let about = fs::metadata(path)?;
    if !about.is_file() || about.len() > LONGEST_FILE {
        return Err(invalid("it is not a regular file of at most 16 KiB"));
    }
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST_FILE).read_to_string(&mut text)?;
    trimmed(&text).ok_or_else(|| invalid("it is empty"))
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(folder: Option<&Path>) -> Secrets {
        Secrets::with_environment(folder.map(Path::to_owned), |name| {
            ["PGOUTBOX_SECRET_SHOP", "DATABASE_URL"].contains(&name).then(|| "canary".into())
        })
    }

    #[test]
    fn an_allowed_reference_is_resolved() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shop"), "canary\n").unwrap();
        let secrets = secrets(Some(folder.path()));
        for reference in ["env:PGOUTBOX_SECRET_SHOP", "file:shop"] {
            assert_eq!(secrets.resolve(reference).unwrap().expose_secret(), "canary", "{reference}");
        }
    }

    #[test]
    fn replaced_secrets_sign_for_a_day_also_when_one_in_between_was_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = secrets(Some(folder.path()));
        let signing = |written: &str| {
            fs::write(folder.path().join("shop"), written).unwrap();
            let active = secrets.resolve_for_signing("file:shop").unwrap();
            active.iter().map(|secret| secret.expose_secret().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(signing("one"), ["one"]);
        assert_eq!(signing("one"), ["one"], "it is the same");
        assert_eq!(signing("mistake"), ["mistake", "one"]);
        assert_eq!(signing("two"), ["two", "mistake", "one"]);
        assert_eq!(signing("one"), ["one", "two", "mistake"], "taken back");
        assert_eq!(signing("three"), ["three", "one", "two"], "two of them at most");
        assert!(!secrets.forget_replaced());
        for (_, at) in &mut secrets.signing.lock().unwrap().get_mut("file:shop").unwrap().replaced[1..] {
            *at = at.checked_sub(OVERLAP).unwrap();
        }
        assert!(secrets.forget_replaced() && !secrets.forget_replaced());
        assert_eq!(signing("three"), ["three", "one"]);
    }

    #[test]
    fn white_space_around_a_secret_is_not_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        for written in ["canary\n", "canary\r\n\n", " canary\t", "\u{feff}canary\u{a0}"] {
            fs::write(folder.path().join("shop"), written).unwrap();
            let secrets = Secrets::with_environment(Some(folder.path().to_owned()), |_| Some(written.into()));
            for reference in ["env:PGOUTBOX_SECRET_SHOP", "file:shop"] {
                assert_eq!(secrets.resolve(reference).unwrap().expose_secret(), "canary", "{written:?}");
            }
        }
        let blank = Secrets::with_environment(None, |_| Some(" \n".into()));
        assert!(blank.resolve("env:PGOUTBOX_SECRET_SHOP").unwrap_err().contains("not set"));
    }

    #[test]
    fn a_forbidden_reference_is_refused_without_the_secret() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("secrets");
        fs::create_dir(&folder).unwrap();
        fs::write(root.path().join("outside"), "canary").unwrap();
        std::os::unix::fs::symlink(root.path().join("outside"), folder.join("link")).unwrap();
        std::os::unix::fs::symlink(root.path(), folder.join("up")).unwrap();
        let absolute = format!("file:{}", root.path().join("outside").display());
        let secrets = secrets(Some(&folder));
        for reference in [
            "env:DATABASE_URL",
            "env:",
            "env:PGOUTBOX_SECRET_SHOP=",
            "env:pgoutbox_secret_shop",
            "ENV:PGOUTBOX_SECRET_SHOP",
            "file:../outside",
            "file:link",
            "file:up/outside",
            "file:./../outside",
            "file:",
            "file:.",
            "file:..",
            "file:missing",
            "file:///etc/passwd",
            "file:/etc/passwd",
            "file:\0",
            "canary",
            "",
            &absolute,
        ] {
            let refusal = secrets.resolve(reference).expect_err(reference);
            assert!(reference == "canary" || !refusal.contains("canary"), "{refusal}");
        }
        assert!(Secrets::new(None).resolve("file:shop").is_err());
    }

    #[test]
    fn the_operator_may_refer_to_any_file_but_not_to_a_folder_or_an_endless_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "canary\r\n").unwrap();
        assert_eq!(operator_secret(&format!("file:{}", path.display())).unwrap().expose_secret(), "canary");
        for reference in ["file:/dev/zero", "file:/tmp", "file:/missing", "env:PGOUTBOX_NOT_SET", "token"] {
            assert!(operator_secret(reference).is_err(), "{reference}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?} {:?}", secrets(None), secrets(None).resolve("env:PGOUTBOX_SECRET_SHOP"));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
