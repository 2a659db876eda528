//! Scripts of `tests/clients` in other languages, run with the libraries that `make clients` installs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// Deadline of a script.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a Python script of `tests/clients` with these environment variables. Returns its output. It must
/// succeed within a minute. Async, so that a receiver or relay of the same test continues.
pub(crate) async fn python(script: &str, settings: &[(&str, &str)]) -> String {
    let environment = installed("requirements.txt", "requirements.installed");
    let mut command = Command::new(environment.join("venv/bin/python"));
    command.arg("-B").arg(environment.join("tests/clients").join(script));
    ended_well(script, command, settings).await
}

/// A file of a Python package, such as a program.
pub(crate) fn python_file(path: &str) -> PathBuf {
    let packages =
        fs::read_dir(installed("requirements.txt", "requirements.installed").join("venv/lib")).unwrap();
    let found = packages
        .map(|python| python.unwrap().path().join("site-packages").join(path))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{path} is not among the Python packages; run: make clients"))
}

/// Runs a script with Node.
pub(crate) async fn node(script: &str, settings: &[(&str, &str)]) -> String {
    let environment = installed("package-lock.json", "package-lock.installed");
    let mut command = Command::new("node");
    // The path contains a link beside node_modules and must not be resolved, so that Node finds the
    // packages.
    command
        .args(["--preserve-symlinks", "--preserve-symlinks-main"])
        .arg(environment.join("tests/clients").join(script));
    ended_well(script, command, settings).await
}

/// Runs the tests of a file with Node.
pub(crate) async fn node_tests(script: &str) -> String {
    let mut command = Command::new("node");
    command.arg("--test").arg(scripts().join(script));
    ended_well(script, command, &[]).await
}

/// Checks the types of a file with the compiler of TypeScript.
pub(crate) async fn typescript(script: &str) -> String {
    let environment = installed("package-lock.json", "package-lock.installed");
    let mut command = Command::new(environment.join("node_modules/.bin/tsc"));
    command
        .args(["--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom"])
        .args(["--module", "nodenext", "--types", "", "--ignoreConfig"])
        .arg(scripts().join(script));
    ended_well(script, command, &[]).await
}

/// Runs a script with Ruby.
pub(crate) async fn ruby(script: &str, settings: &[(&str, &str)]) -> String {
    let mut command = Command::new("ruby");
    command.arg(scripts().join(script));
    ended_well(script, command, settings).await
}

/// Runs a Java program of one file, with the JDBC driver.
pub(crate) async fn java(script: &str, settings: &[(&str, &str)]) -> String {
    let driver = folder().join("postgresql.jar");
    assert!(driver.is_file(), "{} does not exist; run: make clients", driver.display());
    let mut command = Command::new("java");
    command.arg("-cp").arg(driver).arg(scripts().join(script));
    ended_well(script, command, settings).await
}

/// Runs a Go program of one file, with the packages that Debian installs.
pub(crate) async fn go(script: &str, settings: &[(&str, &str)]) -> String {
    let mut command = Command::new("go");
    command.arg("run").arg(scripts().join(script));
    let cache = folder().join("go-build");
    let packages = [("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")];
    let cache = [("GOCACHE", cache.to_str().unwrap())];
    ended_well(script, command, &[settings, &packages, &cache].concat()).await
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients")
}

/// The folder of the installed libraries, if they are those of the list.
fn installed(list: &str, copy: &str) -> PathBuf {
    let environment = folder();
    let wanted = fs::read(scripts().join(list)).unwrap();
    let fits = fs::read(environment.join(copy)).is_ok_and(|installed| installed == wanted);
    assert!(fits, "the libraries of tests/clients/{list} are not installed, or not these; run: make clients");
    environment
}

async fn ended_well(script: &str, mut command: Command, settings: &[(&str, &str)]) -> String {
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(settings.iter().copied())
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let Ok(output) = timeout(LIMIT, command.output()).await else {
        panic!("{script} did not end within {LIMIT:?}")
    };
    let Output { status, stdout, stderr } =
        output.unwrap_or_else(|error| panic!("{script} could not be started: {error}; run: make clients"));
    let (printed, errors) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{script} failed ({status}); its output:\n{printed}\n{errors}");
    printed
}
