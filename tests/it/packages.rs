//! The Debian package: built by cargo-deb from the program under test, looked into, installed into an empty
//! root, installed again over a changed configuration, and purged.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a command that must succeed. Returns what it printed.
fn run(command: &mut Command) -> String {
    let output =
        command.env_remove("DPKG_ROOT").output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Builds the package into a folder.
fn built(folder: &Path) -> PathBuf {
    let program = env!("CARGO_BIN_EXE_pgoutbox");
    fs::create_dir_all(folder.join("release")).unwrap();
    fs::hard_link(program, folder.join("release/pgoutbox")).unwrap();
    let sources = env!("CARGO_MANIFEST_DIR");
    run(Command::new("packaging/prepare.sh").arg(program).current_dir(sources));
    let package = folder.join("pgoutbox.deb");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["deb", "--no-build", "--fast", "--output"]).arg(&package).current_dir(sources);
    run(cargo.env("CARGO_TARGET_DIR", folder).env("CARGO_NET_OFFLINE", "true"));
    package
}

/// An empty system that dpkg can install into. Scripts run outside of it; `DPKG_ROOT` is its folder.
fn dpkg(root: &Path, arguments: &[&str]) {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display()));
    dpkg.args(["--force-script-chrootless", "--force-depends", "--force-confold", "--log=/dev/null"]);
    run(dpkg.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"));
}

fn empty_system(root: &Path) {
    for folder in ["etc", "var/lib/dpkg/updates", "var/lib/dpkg/info"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
}

/// Permissions, owner and group of a file.
fn rights(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
#[ignore = "needs cargo-deb and root: make test-deb"]
fn the_package_installs_a_program_a_service_and_a_configuration_that_others_cannot_read() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let package = built(folder.path());
    let package = package.to_str().unwrap();
    let fields = run(Command::new("dpkg-deb").args(["--info", package]));
    for needed in ["libc6", "ca-certificates", "systemd-sysusers"] {
        let depends = fields.lines().find(|line| line.starts_with(" Depends: ")).unwrap();
        assert!(depends.contains(needed), "{depends}");
    }
    assert!(run(Command::new("dpkg-deb").args(["--info", package, "conffiles"])).contains("/etc/pgoutbox/"));
    let found = run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning", package]));
    assert!(found.is_empty(), "{found}");

    let root = folder.path().join("root");
    empty_system(&root);
    dpkg(&root, &["--install", package]);
    let group = fs::read_to_string(root.join("etc/group")).unwrap();
    let group = group.lines().find_map(|line| line.strip_prefix("pgoutbox:x:")).expect("its group");
    let group: u32 = group.trim_end_matches(':').parse().unwrap();
    assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().contains("\npgoutbox:x:"), "its user");
    let config = root.join("etc/pgoutbox/pgoutbox.toml");
    assert_eq!(rights(&config), (0o640, 0, group));
    assert_eq!(rights(&root.join("etc/pgoutbox")), (0o750, 0, group));
    assert_eq!(rights(&root.join("usr/bin/pgoutbox")), (0o755, 0, 0));
    for file in [
        "usr/lib/systemd/system/pgoutbox.service",
        "usr/share/man/man1/pgoutbox.1.gz",
        "usr/share/man/man1/pgoutbox-dead-letters-redrive.1.gz",
        "usr/share/bash-completion/completions/pgoutbox",
        "usr/share/zsh/vendor-completions/_pgoutbox",
        "usr/share/fish/vendor_completions.d/pgoutbox.fish",
        "usr/share/doc/pgoutbox/examples/pgoutbox.toml",
        "usr/share/doc/pgoutbox/copyright",
    ] {
        assert_eq!(rights(&root.join(file)), (0o644, 0, 0), "{file}");
    }
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/pgoutbox.service");
    assert!(!enabled.exists(), "it has no address yet, so it is not started with the machine");
    let version = run(Command::new(root.join("usr/bin/pgoutbox")).arg("--version"));
    assert_eq!(version, format!("pgoutbox {}\n", env!("CARGO_PKG_VERSION")));

    // What the administrator wrote, and who may read it, survive an upgrade.
    fs::write(&config, "[relay]\npermits = 7\n").unwrap();
    run(Command::new("chmod").arg("0600").arg(&config));
    dpkg(&root, &["--install", package]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "[relay]\npermits = 7\n");
    assert_eq!(rights(&config), (0o600, 0, group));
    dpkg(&root, &["--purge", "pgoutbox"]);
    for gone in ["etc/pgoutbox", "usr/bin/pgoutbox", "usr/lib/systemd/system/pgoutbox.service"] {
        assert!(!root.join(gone).exists(), "{gone}");
    }
}

#[test]
#[ignore = "needs systemd-analyze: make test-deb"]
fn the_service_gives_the_relay_few_rights() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/pgoutbox.service");
    // From 0, no rights, to 100, all of them.
    run(Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=20"]).arg(unit));
}
