//! The command line for scripts: exit codes and output streams.

use std::{
    io::{Seek as _, Write},
    process::{Command, Output, Stdio},
};

/// An address where nothing listens.
const NOBODY: &str = "postgres://postgres@127.0.0.1:1/nothing";

/// Runs the binary with this environment only, in an empty folder.
fn pgoutbox(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_lists_every_command_and_every_exit_code() {
    let output = pgoutbox(&["--help"], &[]);
    let help = text(&output.stdout);
    assert_eq!((code(&output), output.stderr.len()), (0, 0));
    for command in [
        "demo",
        "migrate",
        "run",
        "gateway",
        "tail",
        "check",
        "status",
        "publish",
        "receive",
        "subscriptions",
        "types",
        "dead-letters",
        "deliveries",
        "events",
        "attempts",
        "bench",
        "inbox",
        "healthcheck",
        "explain",
        "completions",
    ] {
        assert!(
            help.lines().any(|line| line.starts_with(&format!("  {command} "))),
            "{command} is not in\n{help}"
        );
        let output = pgoutbox(&[command, "--help"], &[]);
        assert_eq!(code(&output), 0, "{command}");
    }
    for exit in [0, 1, 2, 69, 75, 78] {
        assert!(
            help.lines().any(|line| line.starts_with(&format!("  {exit:>2}  "))),
            "{exit} is not in\n{help}"
        );
    }
    for (group, commands) in [
        (
            "subscriptions",
            ["list", "show", "test", "export", "apply", "create", "pause", "resume", "delete"].as_slice(),
        ),
        ("types", &["list", "add", "check"]),
        ("dead-letters", &["list", "show", "redrive", "discard"]),
        ("deliveries", &["list", "retry", "cancel"]),
        ("events", &["list", "show"]),
    ] {
        let help = text(&pgoutbox(&[group, "--help"], &[]).stdout);
        for command in commands {
            assert!(help.contains(&format!("\n  {command} ")), "{group} {command} is not in\n{help}");
        }
    }
}

#[test]
fn wrong_usage_ends_with_2_and_a_message_on_standard_error() {
    for arguments in [
        &[][..],
        &["deliver"],
        &["status", "--jsn"],
        &["publish"],
        &["publish", "a.b", "{}", "--priority", "1001"],
        &["publish", "a.b", "not json"],
        &["publish", "a.b", "{}", "--id", "7"],
        &["publish", "a.b", "{}", "--deliver-after", "soon"],
        &["dead-letters", "discard"],
        &["dead-letters", "redrive", "--max-rows", "0"],
        &["receive", "--fail", "2"],
        &["receive", "--secret", "whsec_itself"],
        &["explain", "bad_luck"],
        &["completions", "cobol"],
    ] {
        let output = pgoutbox(arguments, &[("DATABASE_URL", NOBODY)]);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn what_is_wrong_with_a_payload_is_named_with_its_place_before_anything_is_asked_of_the_database() {
    for (payload, expected, problem) in [
        (&b"\xef\xbb\xbf{}"[..], 69, ""),
        (b"{\n  \"total\": 4,5\n}", 2, "line 2, column 14, where '5' is"),
        ("{“total”: 1}".as_bytes(), 2, "line 1, column 2, where '“' is"),
        (b"{\"name\": \"M\xfcller\"}", 2, "line 1, column 12 is the byte 0xfc, which is not UTF-8"),
        (b"\xff\xfe{\0}\0", 2, "it is UTF-16; save it as UTF-8"),
    ] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(payload).unwrap();
        file.rewind().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .args(["publish", "shop.sold", "-"])
            .env("DATABASE_URL", NOBODY)
            .stdin(file)
            .output()
            .unwrap();
        assert_eq!(code(&output), expected, "{output:?}");
        assert!(text(&output.stderr).contains(problem), "{problem}: {output:?}");
    }
}

#[test]
fn an_unreachable_database_ends_with_69() {
    for arguments in [
        &["status"][..],
        &["run"],
        &["migrate", "--dry-run"],
        &["publish", "a.b"],
        &["subscriptions", "list"],
        &["dead-letters", "list"],
    ] {
        let environment = [("DATABASE_URL", NOBODY), ("PGOUTBOX__HTTP__LISTEN", "off")];
        let output = pgoutbox(arguments, &environment);
        assert_eq!(code(&output), 69, "{arguments:?}: {output:?}");
        let last = text(&output.stderr);
        assert_eq!(last.lines().filter(|line| line.starts_with("pgoutbox: ")).count(), 1, "one line: {last}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_78_and_names_every_key_and_its_origin() {
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(b"[relay]\npermit = 5\nlease = 'long'").unwrap();
    let path = file.path().to_str().unwrap();
    for command in ["run", "check", "status", "healthcheck"] {
        let output = pgoutbox(
            &[command, "--config", path],
            &[("DATABASE_URL", "postgres://u:hunter2@h/d?tls=on"), ("PGOUTBOX__RELAY__PERMITS", "none")],
        );
        let message = text(&output.stderr);
        assert_eq!(code(&output), 78, "{command}: {message}");
        assert!(!message.contains("hunter2"), "{message}");
        for expected in [
            &format!("relay.permit ({path}): unknown key"),
            &format!("relay.lease = \"long\" ({path})"),
            "relay.permits = \"none\" (PGOUTBOX__RELAY__PERMITS)",
            "database.url = [redacted] (DATABASE_URL)",
        ] {
            assert!(message.contains(expected), "{expected} is not in\n{message}");
        }
    }
    let missing = pgoutbox(&["check", "--config", "/nowhere.toml"], &[("DATABASE_URL", NOBODY)]);
    assert_eq!(code(&missing), 78);
    assert_eq!(code(&pgoutbox(&["status"], &[])), 78, "no address at all");
}

#[test]
fn the_address_can_be_given_as_a_flag_before_and_after_the_command() {
    for arguments in [["--database-url", NOBODY, "status"], ["status", "--database-url", NOBODY]] {
        assert_eq!(code(&pgoutbox(&arguments, &[("DATABASE_URL", "mysql://wrong")])), 69);
    }
}

#[test]
fn check_reads_the_configuration_also_when_the_database_cannot_be_reached_and_ends_with_69() {
    let output = pgoutbox(&["check"], &[("DATABASE_URL", NOBODY), ("PGOUTBOX__RELAY__POLL", "off")]);
    let message = text(&output.stderr);
    assert_eq!(code(&output), 69, "{message}");
    assert!(
        message.contains("the configuration is valid") && message.contains("note: relay.poll is off"),
        "{message}"
    );
}

#[test]
fn explain_knows_every_reason() {
    let all = text(&pgoutbox(&["explain"], &[]).stdout);
    for reason in pgoutbox::delivery::Reason::ALL {
        assert!(all.contains(reason.code()));
        assert!(text(&pgoutbox(&["explain", reason.code()], &[]).stdout).starts_with(reason.code()));
    }
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&pgoutbox(&["completions", shell], &[]).stdout).contains("dead-letters"), "{shell}");
    }
}

#[test]
fn a_relay_that_does_not_run_is_not_healthy() {
    for (listen, expected) in [("127.0.0.1:1", "asking 127.0.0.1:1"), ("off", "http.listen is off")] {
        let output =
            pgoutbox(&["healthcheck"], &[("DATABASE_URL", NOBODY), ("PGOUTBOX__HTTP__LISTEN", listen)]);
        assert_eq!(code(&output), 1);
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
}
