//! What strangers wrote never controls a terminal: lists, JSON, the printed requests of a receiver.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::support::Database;

/// Colours, a C1 control, another direction, a line separator, a zero-width letter, a filler, a tag.
const HOSTILE: &str = "a\u{1b}[31m\u{9b}2J\u{202e}\u{2028}\u{200b}\u{3164}\u{e0041}z";

fn is_harmless(text: &str) -> bool {
    // A list of its own, not the one of the code.
    text.chars()
        .all(|c| c == '\n' || (!c.is_control() && !"\u{202e}\u{2028}\u{200b}\u{3164}\u{e0041}".contains(c)))
}

#[tokio::test]
async fn what_strangers_wrote_is_shown_harmless_and_means_the_same_in_json() {
    let database = Database::new().await;
    sqlx::query(
        "insert into outbox.dead_letters (subscription_id, subscription, reason, answer, attempts, event_id, position,
                                          created_at, topic, key, payload, headers, priority)
         values (1, 'shop', 'timeout', $1, 1, outbox.new_id(), 1, now(), $1, $1, to_jsonb($1::text), '{}', 0)",
    )
    .bind(HOSTILE)
    .execute(&database.pool)
    .await
    .unwrap();
    let id: uuid::Uuid = sqlx::query_scalar("select event_id from outbox.dead_letters")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let id = id.to_string();
    for arguments in [
        ["dead-letters", "list"].as_slice(),
        &["trace", &id],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "show", "1"],
        &["dead-letters", "show", "1", "--json"],
        // what is refused is shown too
        &["subscriptions", "pause", HOSTILE],
    ] {
        let output = database.pgoutbox(arguments);
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(is_harmless(&out) && is_harmless(&err), "{arguments:?}: {out:?} {err:?}");
        if arguments.ends_with(&["--json"]) {
            let row: Value = serde_json::from_str(&out).unwrap();
            assert_eq!(
                (&row["topic"], &row["key"], &row["answer"]),
                (&HOSTILE.into(), &HOSTILE.into(), &HOSTILE.into())
            );
        }
    }
    // Exported as SQL it means the same.
    let subscribe = "select outbox.subscribe('shop', array['**'], 'recorder', \
                                             jsonb_build_object('note', $1::text), filter => $2)";
    sqlx::query(subscribe)
        .bind(HOSTILE)
        .bind(format!("topic != '{HOSTILE}\\\\'"))
        .execute(&database.pool)
        .await
        .unwrap();
    let all =
        "select to_jsonb(s) - '{id,changed,created_at,updated_at}'::text[] from outbox.subscriptions as s";
    let before: Value = sqlx::query_scalar(all).fetch_one(&database.pool).await.unwrap();
    let exported = String::from_utf8(database.pgoutbox(&["subscriptions", "export"]).stdout).unwrap();
    assert!(is_harmless(&exported), "{exported:?}");
    database.execute("delete from outbox.subscriptions").await;
    database.execute(exported).await;
    let after: Value = sqlx::query_scalar(all).fetch_one(&database.pool).await.unwrap();
    assert_eq!(after, before);
    database.drop().await;
}

#[test]
fn a_receiver_answers_no_web_page_and_prints_what_it_gets_harmless() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(["receive", "--port", "0"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut ready).unwrap();
    let address = ready.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let ask = |headers: &str, body: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let rest = format!("content-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(format!("POST / HTTP/1.1\r\n{headers}{rest}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask(&format!("host: {address}\r\norigin: https://evil.example\r\n"), "page"), "403");
    assert_eq!(ask("host: evil.example\r\n", "rebound"), "403");
    assert_eq!(ask("host: [::1]:80\r\n", &format!("{HOSTILE}\nnext")), "204");
    assert_eq!(ask("host: localhost\r\n", "last"), "204");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        is_harmless(&first) && first.ends_with("z\\nnext"),
        "one line, the first request that is none of a page: {first:?}"
    );
    assert!(second.ends_with("last"), "{second:?}");
}
