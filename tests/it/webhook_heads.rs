//! Responses whose heads are malformed or never end: the status decides, and bytes are bounded.

use std::time::Duration;

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::{Report, egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    deliveries::{deliveries, reasons},
    hostile::{Hostile, Mode},
};

/// The reports for two events, alone or as a batch. The receiver is told the id of the second.
async fn answered(is_batch: bool, mode: impl Fn(&str) -> Mode) -> Vec<Report> {
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    let mut registry = pgoutbox::sinks::registry();
    registry.add(Webhook::new(&egress, Secrets::with_environment(None, |_| None)).unwrap());
    let named = deliveries(&registry, "webhook", json!({"url": "http://127.0.0.1:81/"}), 2);
    let receiver = Hostile::start(mode(&named[1].event.id.to_string())).await;
    let mut config = json!({"url": receiver.url("/"), "timeout": "20s"});
    if is_batch {
        config["batch"] = json!({});
    }
    let mut deliveries = deliveries(&registry, "webhook", config, 2);
    for (delivery, named) in deliveries.iter_mut().zip(named.outgoing) {
        delivery.event = named.event;
    }
    if !is_batch {
        deliveries.outgoing.truncate(1);
    }
    timeout(Duration::from_secs(15), deliveries.outlet.send(&deliveries))
        .await
        .expect("long before its timeout")
}

fn raw(head: &str, body: &str) -> Mode {
    Mode::Raw(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

fn lines(count: usize) -> String {
    (0..count).map(|n| format!("\r\nx-{n}: {n}")).collect()
}

/// Header lines that a parser may refuse although the response can be read.
fn odd() -> Vec<String> {
    [
        "\r\nno colon here",
        "\r\nx-space : 1",
        "\r\nx-folded: 1\r\n and more",
        "\r\nx-\u{fc}: 1",
        "\r\n: no name",
        "\r\nx y: 1",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([lines(101), lines(200)])
    .collect()
}

#[tokio::test]
async fn a_2xx_is_delivered_whatever_its_headers_look_like() {
    for line in odd() {
        let reports = answered(false, |_| raw(&format!("HTTP/1.1 200 OK{line}"), "ok")).await;
        assert_eq!((&reports[0].outcome, reports[0].status), (&Outcome::Delivered, Some(200)), "{line}");
        assert_eq!(reports[0].answer.as_deref(), Some("ok"), "{line}");
    }
    // Where the body ends cannot be known, but the status can.
    for head in [
        format!("HTTP/1.1 201 Created{}", lines(2_000)),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: many".to_owned(),
        "HTTP/1.1 202 Accepted\r\ncontent-length: -1".to_owned(),
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked".to_owned(),
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1,2".to_owned(),
    ] {
        let reports = answered(false, |_| Mode::Raw(format!("{head}\r\n\r\n").into_bytes())).await;
        assert_eq!((&reports[0].outcome, reports[0].ambiguous), (&Outcome::Delivered, false), "{head}");
        assert!(reports[0].status.is_some_and(|status| status / 100 == 2));
    }
}

#[tokio::test]
async fn any_other_status_decides_too_although_its_headers_are_malformed() {
    let retry = |reason| Outcome::Retry { reason, after: None };
    for (status, outcome, ambiguous) in [
        (410, Outcome::Gone, false),
        (404, retry(Reason::ClientError), false),
        (302, retry(Reason::Redirect), false),
        (500, retry(Reason::ServerError), true),
    ] {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: many\r\n\r\n");
        let reports = answered(false, |_| Mode::Raw(head.clone().into_bytes())).await;
        let report = &reports[0];
        assert_eq!((&report.outcome, report.status, report.ambiguous), (&outcome, Some(status), ambiguous));
    }
    let reports = answered(false, |_| Mode::Raw(b"HTTP/1.1 2xx OK\r\n\r\n".to_vec())).await;
    assert_eq!((&reports[0].outcome, reports[0].ambiguous), (&retry(Reason::BrokenAnswer), true));
}

#[tokio::test]
async fn a_batch_is_acknowledged_where_the_answer_can_be_read_and_only_there() {
    let delivered = ("delivered", None);
    for line in odd() {
        let list = |id: &str| raw(&format!("HTTP/1.1 200 OK{line}"), &format!("{{\"failed\": [\"{id}\"]}}"));
        let reports = answered(true, list).await;
        assert_eq!(reasons(&reports), [delivered, ("retry", Some(Reason::NotAcknowledged))], "{line}");
    }
    let unreadable = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}";
    let reports = answered(true, |_| Mode::Raw(unreadable.into())).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::BrokenAnswer)); 2]);
    assert!(reports.iter().all(|report| report.ambiguous));
}

#[tokio::test]
async fn endless_interim_answers_end_the_attempt_after_a_few_bytes() {
    for mode in [Mode::Endless103, Mode::HugeHead, Mode::Raw(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20_000))]
    {
        let reports = answered(false, |_| mode.clone()).await;
        let report = &reports[0];
        assert_eq!(
            (report.outcome.reason(), report.ambiguous),
            (Some(Reason::BrokenAnswer), true),
            "{:?}",
            report.answer
        );
    }
    // A few are waited for, and the one after them decides.
    let some = format!("{}HTTP/1.1 204 X\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n".repeat(1_000));
    let reports = answered(false, |_| Mode::Raw(some.clone().into_bytes())).await;
    assert_eq!((&reports[0].outcome, reports[0].status), (&Outcome::Delivered, Some(204)));
}
