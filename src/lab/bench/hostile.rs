//! Receivers of webhooks whose answers have no end: bodies, heads, and bodies that come byte by byte.

use std::time::Duration;

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Time between two bytes of a slow answer.
const DRIP: Duration = Duration::from_millis(100);
/// Bytes of an endless answer that are written at once.
const PIECE: usize = 16 * 1024;

/// What a receiver does.
#[derive(Debug, Clone, Copy)]
enum Habit {
    EndlessBody,
    EndlessHead,
    SlowBody,
}

/// One receiver of each kind. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Hostile {
    /// Addresses for webhooks, one of each kind.
    pub(super) urls: Vec<String>,
    _serving: JoinSet<()>,
}

impl Hostile {
    pub(super) async fn open() -> anyhow::Result<Self> {
        let (mut urls, mut serving) = (Vec::new(), JoinSet::new());
        for habit in [Habit::EndlessBody, Habit::EndlessHead, Habit::SlowBody] {
            let listener = TcpListener::bind("127.0.0.1:0").await.context("opening a receiver")?;
            urls.push(format!("http://{}/", listener.local_addr()?));
            serving.spawn(serve(listener, habit));
        }
        Ok(Self { urls, _serving: serving })
    }
}

async fn serve(listener: TcpListener, habit: Habit) {
    let mut answering = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        answering.spawn(answer(stream, habit));
        while answering.try_join_next().is_some() {}
    }
}

/// Answers one request, until the relay closes the connection.
async fn answer(mut stream: TcpStream, habit: Habit) {
    let mut request = vec![0; PIECE];
    if !matches!(stream.read(&mut request).await, Ok(read) if read > 0) {
        return;
    }
    let (head, piece) = match habit {
        Habit::EndlessBody => {
            let chunk = format!("{PIECE:x}\r\n{}\r\n", "x".repeat(PIECE));
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunk)
        }
        Habit::EndlessHead => {
            ("HTTP/1.1 200 OK\r\n", format!("x-more: {}\r\n", "x".repeat(1_000)).repeat(16))
        }
        Habit::SlowBody => ("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", "x".to_owned()),
    };
    let mut pauses = tokio::time::interval(DRIP);
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while stream.write_all(piece.as_bytes()).await.is_ok() {
        if matches!(habit, Habit::SlowBody) {
            pauses.tick().await;
        }
    }
}
