//! The demo, which uses every part of the program.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Starts `pgoutbox demo` with piped output.
fn demo(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
    command
        .arg("demo")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Directories of private servers of a process.
fn directories_of(process: u32) -> Vec<PathBuf> {
    let prefix = format!("pgoutbox-postgres-{process}-");
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .collect()
}

fn interrupt(process: u32) {
    assert!(
        Command::new("sh")
            .args(["-c", "kill -s INT \"$0\"", &process.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn the_scripted_demo_delivers_everything_as_planned_and_leaves_nothing_behind() {
    let child = demo(&["--once"]);
    let process = child.id();
    let output = child.wait_with_output().unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}:\n{printed}\n{errors}", output.status);
    assert!(
        printed.contains("checked: every committed event reached each matching subscription"),
        "{printed}"
    );
    assert!(!printed.contains('\x1b'), "no escape sequences without a terminal:\n{printed}");
    assert_eq!(directories_of(process), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_demo_drains_ends_well_and_leaves_nothing_behind() {
    let mut child = demo(&[]);
    let process = child.id();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let selling = lines.by_ref().map(Result::unwrap).find(|line| line.contains(" committed, "));
    assert!(selling.is_some(), "it ended before it sold anything");
    assert_eq!(directories_of(process).len(), 1);

    interrupt(process);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(status.success(), "it ended with {status}:\n{}\n{errors}", rest.join("\n"));
    assert_eq!(directories_of(process), Vec::<PathBuf>::new());
}
