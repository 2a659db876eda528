//! The demo, which uses every part of the program.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
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

/// Interrupts a demo when the test fails before it does.
struct Interrupted(u32);

impl Drop for Interrupted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            interrupt(self.0);
        }
    }
}

/// What is answered within a few seconds; a stream goes on, and is read until it has an event.
fn answer(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while !text.contains("\"type\":\"event\"") {
        let read = stream.read(&mut part).unwrap();
        if read == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    text
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
    let _interrupted = Interrupted(process);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut selling_page = None;
    let selling = lines.by_ref().map(Result::unwrap).find(|line| {
        if let Some((_, page)) = line.split_once("in a browser: http://") {
            selling_page = page.strip_suffix("/demo").map(str::to_owned);
        }
        line.contains(" committed, ")
    });
    assert!(selling.is_some(), "it ended before it sold anything");
    assert_eq!(directories_of(process).len(), 1);

    let page = selling_page.expect("the address of the page");
    assert!(answer(&page, "/demo").contains("Orders, live"), "{page}");
    assert!(answer(&page, "/demo/page.js").contains("/client.js"), "{page}");
    assert!(answer(&page, "/client.js").contains("export function connect"), "{page}");
    let stream = answer(&page, "/v1/stream?topics=shop.order.*&since=2020-01-01T00:00:00Z");
    assert!(stream.contains("\"topic\":\"shop.order.placed\""), "{stream}");

    interrupt(process);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(status.success(), "it ended with {status}:\n{}\n{errors}", rest.join("\n"));
    assert_eq!(directories_of(process), Vec::<PathBuf>::new());
}
