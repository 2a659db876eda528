//! The notifications for systemd that the binary sends to `NOTIFY_SOCKET`.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{net::UnixDatagram, time::timeout};

use crate::{
    gateway,
    support::{ChildRelay, Database},
};

/// The end of a service manager at which it listens.
pub(crate) struct Manager {
    socket: UnixDatagram,
    pub(crate) path: String,
    _folder: tempfile::TempDir,
}

impl Manager {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").to_str().unwrap().to_owned();
        Self { socket: UnixDatagram::bind(&path).unwrap(), path, _folder: folder }
    }

    /// Waits for a message with this line, and returns it with those before it.
    pub(crate) async fn told(&self, line: &str) -> Vec<String> {
        let mut told = Vec::new();
        let waiting = async {
            loop {
                let mut text = [0; 1024];
                let length = self.socket.recv(&mut text).await.unwrap();
                told.push(String::from_utf8_lossy(&text[..length]).into_owned());
                if told.last().unwrap().lines().any(|one| one == line) {
                    return;
                }
            }
        };
        let came = timeout(Duration::from_secs(20), waiting).await;
        assert!(came.is_ok(), "{line} was not told: {told:?}");
        told
    }
}

#[tokio::test]
async fn a_relay_tells_systemd_that_it_is_ready_alive_reloading_and_stopping() {
    let database = Database::new().await;
    let manager = Manager::new();
    let settings = [
        ("NOTIFY_SOCKET", manager.path.as_str()),
        ("WATCHDOG_USEC", "300000"),
        ("PGOUTBOX__RELAY__DRAIN", "7s"),
    ];
    let mut relay = ChildRelay::start(&database, "relay", &settings).await;
    manager.told("READY=1").await;
    manager.told("WATCHDOG=1").await;
    manager.told("WATCHDOG=1").await;

    relay.signal("HUP");
    let reloading = manager.told("RELOADING=1").await.pop().unwrap();
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.told("READY=1").await;

    relay.signal("TERM");
    let stopping = manager.told("STOPPING=1").await.pop().unwrap();
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=17000000"), "longer than relay.drain: {stopping}");
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", relay.log());
    database.drop().await;
}

#[tokio::test]
async fn a_gateway_tells_systemd_that_it_is_ready_alive_reloading_and_stopping() {
    let database = Database::new().await;
    let manager = Manager::new();
    let settings = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "300000")];
    let mut gateway = gateway::start(&database, gateway::free_address(), &settings).await;
    manager.told("READY=1").await;
    manager.told("WATCHDOG=1").await;
    gateway.signal("HUP");
    manager.told("RELOADING=1").await;
    manager.told("READY=1").await;
    gateway.signal("TERM");
    manager.told("STOPPING=1").await;
    assert_eq!(gateway.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", gateway.log());
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_cannot_start_never_says_that_it_is_ready() {
    let manager = Manager::new();
    let ended = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .arg("run")
        .env_clear()
        .env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/nothing")
        .env("PGOUTBOX__HTTP__LISTEN", "off")
        .env("NOTIFY_SOCKET", &manager.path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    let mut text = [0; 1024];
    let nothing = manager.socket.try_recv(&mut text);
    assert!(nothing.is_err(), "{nothing:?}");
}
