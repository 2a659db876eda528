//! The image of the Dockerfile, put together without an engine: the program, the libraries that it loads, the
//! authorities, the user. Nothing else is there, and the program runs in it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::Database;

/// Libraries of the base image (distroless/cc-debian12). A program that loads another one would not start.
const BASE: [&str; 10] = [
    "ld-linux",
    "libc.so.6",
    "libcrypto.so.3",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libssl.so.3",
    "libstdc++.so.6",
];

/// The root of a container, and how it starts.
struct Image {
    folder: tempfile::TempDir,
    user: String,
    program: String,
}

impl Image {
    fn assemble() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let dockerfile = dockerfile();
        let last = |instruction: &str| {
            let mut lines = dockerfile.lines().filter_map(|line| line.strip_prefix(instruction));
            lines.next_back().unwrap_or_else(|| panic!("no {instruction}")).trim().to_owned()
        };
        let program = last("COPY --from=build /pgoutbox ");
        let user = last("USER ");
        assert_eq!(last("ENTRYPOINT "), format!("[{program:?}]"));
        assert_eq!(last("CMD "), r#"["run"]"#);
        let image = Self { folder, user, program };

        let binary = Path::new(env!("CARGO_BIN_EXE_pgoutbox"));
        image.put(binary, &image.program);
        for library in libraries(binary) {
            let name = library.file_name().unwrap().to_str().unwrap();
            assert!(BASE.iter().any(|one| name.starts_with(one)), "{name} is not in the base image");
            image.put(&library, library.to_str().unwrap());
        }
        let authorities = "/etc/ssl/certs/ca-certificates.crt";
        assert!(Path::new(authorities).exists(), "install ca-certificates");
        image.put(Path::new(authorities), authorities);
        let (id, _) = image.user.split_once(':').unwrap();
        let passwd = format!(
            "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{id}:{id}::/home/nonroot:/sbin/nologin\n"
        );
        fs::write(image.path("/etc/passwd"), passwd).unwrap();
        fs::write(image.path("/etc/group"), format!("root:x:0:\nnonroot:x:{id}:\n")).unwrap();
        fs::write(image.path("/etc/nsswitch.conf"), "hosts: files dns\n").unwrap();
        image
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside.trim_start_matches('/'))
    }

    fn put(&self, file: &Path, inside: &str) {
        let place = self.path(inside);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        // The program has a hundred megabytes: linked, if it is on the same file system.
        let linked = inside == self.program && fs::hard_link(file, &place).is_ok();
        if !linked {
            fs::copy(file, &place).unwrap();
        }
    }

    /// The program in the image, as its user, who may gain no rights.
    fn command(&self, arguments: &[&str]) -> Command {
        let root = self.folder.path().to_str().unwrap();
        let is_root =
            fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let mut command = if is_root {
            let mut command = Command::new("setpriv");
            let needed = "--bounding-set=-all,+setuid,+setgid,+sys_chroot";
            command.args(["--no-new-privs", needed, "chroot", "--groups="]);
            command.arg(format!("--userspec={}", self.user)).arg(root);
            command
        } else {
            // Somebody else needs a namespace for this, and there owns the files.
            let (user, group) = self.user.split_once(':').unwrap();
            let mut command = Command::new("unshare");
            command.args(["--user", &format!("--map-user={user}"), &format!("--map-group={group}")]);
            command.args([&format!("--root={root}"), "--wd=/"]);
            command
        };
        command.arg(&self.program).args(arguments).stdin(Stdio::null());
        let path = std::env::var_os("PATH").unwrap();
        command.env_clear().env("PATH", path);
        command
    }

    fn output(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(arguments).envs(environment.iter().copied()).output().unwrap()
    }

    /// All files in it.
    fn listed(&self) -> Vec<PathBuf> {
        let mut listed: Vec<PathBuf> = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path.clone());
                }
                listed.push(path);
            }
        }
        listed.sort();
        listed
    }
}

fn dockerfile() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap()
}

/// The libraries that a program loads.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// Asks for a path once.
async fn status(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// A port that is free now.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn the_program_starts_in_the_image_with_no_more_than_its_base_has() {
    let image = Image::assemble();
    let version = image.output(&["--version"], &[]);
    assert!(version.status.success(), "{version:?}");
    let expected = format!("pgoutbox {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
}

#[tokio::test]
async fn a_relay_in_the_image_becomes_ready_writes_nothing_and_drains_at_sigterm() {
    let image = Image::assemble();
    let database = Database::new().await;
    let (before, address) = (image.listed(), free_port());
    let (url, probes) = (database.relay_url(), address.to_string());
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("PGOUTBOX__HTTP__LISTEN", "off"),
        ("PGOUTBOX__HTTP__PROBES", &probes),
    ];
    let mut relay = tokio::process::Command::from(image.command(&["run"]));
    let relay = relay.envs(environment).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let relay = relay.spawn().unwrap();
    let process = relay.id().unwrap().to_string();

    let mut again = tokio::time::interval(Duration::from_millis(50));
    let ready = async {
        while !status(address, "/readyz").await.is_ok_and(|status| status.contains(" 200 ")) {
            again.tick().await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(30), ready).await;
    let healthy = image.output(&["healthcheck"], &environment);
    let stopped = Command::new("sh").args(["-c", "kill -s TERM \"$0\"", &process]).status().unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), relay.wait_with_output()).await;
    let ended = ended.expect("it ends").unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(ready.is_ok(), "it does not become ready: {log}");
    assert!(healthy.status.success(), "{healthy:?}");
    assert!(stopped.success() && ended.status.code() == Some(0), "{:?}: {log}", ended.status);
    assert_eq!(image.listed(), before, "it writes nothing");
    database.drop().await;
}
