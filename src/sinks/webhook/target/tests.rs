//! Tests of a webhook's config and of the requests made from it.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::sink::egress::Egress;

fn parse(config: Value) -> Result<Target, String> {
    let secrets = Secrets::with_environment(None, |name| match name {
        "PGOUTBOX_SECRET_SHOP" => Some("canary canary canary canary".into()),
        "PGOUTBOX_SECRET_TOKEN" => Some("Bearer canarycanary".into()),
        "PGOUTBOX_SECRET_BROKEN" => Some("canary\r\nhost: example.org".into()),
        _ => None,
    });
    Target::parse(&config, &Guard::new(&Egress::default()), &secrets)
}

fn target(extra: Value) -> Result<Target, String> {
    let mut config = json!({"url": "https://example.com/hook?token=canary"});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    parse(config)
}

/// A first attempt for an event.
fn delivery(event: Event) -> Outgoing {
    let now = event.created_at;
    Outgoing::new(Arc::new(event), "trial".into(), now)
}

fn body_of(target: &Target, event: &Event) -> Result<String, usize> {
    target.message(&[delivery(event.clone())]).map(|message| String::from_utf8(message.body).unwrap())
}

fn headers_of(target: &Target, event: Event, now: i64) -> HeaderMap {
    target.sign(target.message(&[delivery(event)]).unwrap(), now).0
}

fn event(payload: &str) -> Event {
    Event {
        id: Uuid::from_u128(7),
        created_at: chrono::DateTime::from_timestamp_micros(1_649_367_553_000_120).unwrap(),
        topic: "public.orders.create".to_owned(),
        payload: payload.to_owned(),
        ..Event::sample(1)
    }
}

#[test]
fn a_mistake_is_named_by_its_field_and_shows_no_secret() {
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("x-{n}"), json!("v"))).collect();
    for (config, field) in [
        (json!({"urls": "x"}), "config.urls: "),
        (json!({"url": 5}), "config.url: "),
        (json!({"url": "nonsense"}), "config.url: "),
        (json!({"url": "https://127.0.0.1/"}), "config.url: "),
        (json!({"url": format!("https://example.com/{}", "a".repeat(2048))}), "config.url: "),
        (json!({"method": "GET"}), "config.method: "),
        (json!({"method": "post"}), "config.method: "),
        (json!({"body": "xml"}), "config.body: "),
        (json!({"timeout": 15}), "config.timeout: "),
        (json!({"timeout": "15"}), "config.timeout: "),
        (json!({"timeout": "0s"}), "config.timeout: "),
        (json!({"timeout": "61s"}), "config.timeout: "),
        (json!({"dead_letter_on": [500]}), "config.dead_letter_on: "),
        (json!({"dead_letter_on": [429]}), "config.dead_letter_on: "),
        (json!({"dead_letter_on": 400}), "config.dead_letter_on: "),
        (json!({"secret": "whsec_canary"}), "config.secret: "),
        (json!({"secret": []}), "config.secret: "),
        (json!({"secret": [1]}), "config.secret: "),
        (json!({"secret": (vec!["env:PGOUTBOX_SECRET_SHOP"; 4])}), "config.secret: "),
        (json!({"secret": "env:PGOUTBOX_SECRET_MISSING"}), "config.secret: "),
        (json!({"secret": "env:PGOUTBOX_SECRET_TOKEN"}), "config.secret: "),
        (json!({"secret": "env:DATABASE_URL"}), "config.secret: "),
        (json!({"secret": "file:shop"}), "config.secret: "),
        (json!({"headers": []}), "config.headers: "),
        (json!({"headers": many}), "config.headers: "),
        (json!({"headers": {"x": 1}}), "config.headers.x: "),
        (json!({"headers": {"a b": "c"}}), "config.headers.a b: "),
        (json!({"headers": {"x": "a\r\nb: canary"}}), "config.headers.x: "),
        (json!({"headers": {"x": "a".repeat(4097)}}), "config.headers.x: "),
        (json!({"headers": {"x": "env:DATABASE_URL"}}), "config.headers.x: "),
        (json!({"headers": {"x": "env:PGOUTBOX_SECRET_BROKEN"}}), "config.headers.x: "),
        (json!({"headers": {"X": "a", "x": "b"}}), "config.headers.x: "),
    ] {
        let refusal = target(config.clone()).expect_err(&config.to_string());
        assert!(refusal.starts_with(field) && !refusal.contains("canary"), "{config}: {refusal}");
    }
    assert!(
        parse(json!([])).unwrap_err().starts_with("config: ")
            && parse(json!({})).unwrap_err().starts_with("config.url: ")
    );
}

#[test]
fn reserved_headers_are_refused() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "TE",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-authorization",
        "Proxy-Connection",
        "content-type",
        "content-encoding",
        "User-Agent",
        "expect",
        "cookie",
        "webhook-id",
        "Webhook-Signature",
        "ce-id",
        "traceparent",
        "tracestate",
        "X-Amz-Target",
        "x-aws-ec2-metadata-token",
        "x-goog-user-project",
        "x-google-id",
        "x-azure-ref",
        "Metadata",
        "Metadata-Flavor",
        "idempotency-key",
        "pgoutbox-replay",
    ] {
        let refusal = target(json!({"headers": {name: "v"}})).expect_err(name);
        assert!(refusal.contains("reserved"), "{refusal}");
    }
    target(json!({"headers": {"authorization": "env:PGOUTBOX_SECRET_TOKEN", "x-shop": "1"}})).unwrap();
}

#[test]
fn debug_shows_the_destination_and_no_secret() {
    let headers = json!({"authorization": "env:PGOUTBOX_SECRET_TOKEN", "x": "canary"});
    let config = json!({"secret": "env:PGOUTBOX_SECRET_SHOP", "headers": headers});
    let shown = format!("{:?}", Arc::new(target(config).unwrap()));
    assert!(shown.contains("https://example.com:443") && !shown.contains("canary"), "{shown}");
}

#[test]
fn a_standard_body_wraps_the_payload_and_a_raw_one_is_it() {
    let event = event(r#"{"total": 1e400}"#);
    let body = |extra| body_of(&target(extra).unwrap(), &event).unwrap();
    assert_eq!(
        body(json!({})),
        r#"{"type":"public.orders.create","timestamp":"2022-04-07T21:39:13.000120Z","data":{"total": 1e400}}"#
    );
    assert_eq!(body(json!({"body": "raw"})), r#"{"total": 1e400}"#);
}

#[test]
fn the_limit_counts_the_whole_body() {
    let payload = format!("\"{}\"", "a".repeat(LARGEST_BODY - 2));
    let event = event(&payload);
    assert!(body_of(&target(json!({"body": "raw"})).unwrap(), &event).is_ok());
    assert!(body_of(&target(json!({})).unwrap(), &event).is_err_and(|length| length > LARGEST_BODY));
}

#[test]
fn a_binary_cloud_event_has_its_attributes_as_headers_and_the_payload_as_its_body() {
    let target = target(json!({"body": "cloudevents-binary"})).unwrap();
    let event = Event { key: Some("a \"50%\" ä".to_owned()), ..event("[1]") };
    assert_eq!(body_of(&target, &event).unwrap(), "[1]");
    let headers = headers_of(&target, event, 1);
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
    assert_eq!(text("ce-partitionkey"), Some("a%20%2250%25%22%20%C3%A4"));
    assert_eq!((text("ce-specversion"), text("ce-type")), (Some("1.0"), Some("public.orders.create")));
    assert_eq!(
        (text("ce-source"), text("content-type")),
        (Some(body::UNKNOWN_SOURCE), Some("application/json"))
    );
}

#[test]
fn a_batch_is_an_array_with_the_events_ids_and_its_own_request_id() {
    let target = target(json!({"batch": {"max": 2}})).unwrap();
    let (one, two) = (event("1"), Event { id: Uuid::from_u128(8), ..event("2") });
    let message = target.message(&[delivery(one.clone()), delivery(two.clone())]).unwrap();
    let items: Vec<Value> = serde_json::from_slice(&message.body).unwrap();
    assert_eq!((&items[0]["id"], &items[1]["data"]), (&json!(one.id), &json!(2)));
    assert_ne!(message.id, one.id.to_string());
    assert_eq!(
        message.id,
        target.message(&[delivery(one.clone()), delivery(two.clone())]).unwrap().id,
        "a repeated request has the same id"
    );
    assert_ne!(message.id, target.message(&[delivery(two), delivery(one)]).unwrap().id);
}

#[test]
fn an_invalid_batch_is_refused_and_the_field_is_named() {
    for (config, expected) in [
        (json!({"batch": 5}), "config.batch: must be an object"),
        (json!({"batch": {"max": 0}}), "config.batch.max: must be a whole number from 1 to 1000"),
        (json!({"batch": {"wait": "1h"}}), "config.batch.wait: must be at most 5s"),
        (json!({"batch": {"size": 5}}), "config.batch.size: unknown field"),
        (
            json!({"batch": {}, "body": "raw"}),
            "config.batch: only the bodies standard and cloudevents support batches",
        ),
        (
            json!({"body": "xml"}),
            "config.body: must be one of standard, cloudevents, cloudevents-binary, raw",
        ),
    ] {
        let problem = target(config.clone()).expect_err(&config.to_string());
        assert!(problem.starts_with(expected), "{config}: {problem}");
    }
}

#[test]
fn a_replayed_event_is_marked_alone_and_in_a_batch() {
    let replayed = Outgoing { replay: Some(crate::delivery::ReplayId(47)), ..delivery(event("1")) };
    for extra in [json!({}), json!({"batch": {}})] {
        let target = target(extra).unwrap();
        let headers = target.sign(target.message(std::slice::from_ref(&replayed)).unwrap(), 1).0;
        assert_eq!(headers["pgoutbox-replay"], "47");
        assert!(!headers_of(&target, event("1"), 1).contains_key("pgoutbox-replay"));
    }
}

#[test]
fn only_a_valid_trace_is_copied() {
    let target = target(json!({})).unwrap();
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (headers, expected) in [
        (json!({"traceparent": valid, "tracestate": "a=b"}), (Some(valid), Some("a=b"))),
        (json!({"traceparent": valid, "tracestate": "a\u{e9}"}), (Some(valid), None)),
        (json!({"traceparent": valid.to_uppercase(), "tracestate": "a=b"}), (None, None)),
        (json!({"traceparent": "00-00000000000000000000000000000000-b7ad6b7169203331-01"}), (None, None)),
        (json!({"traceparent": "x"}), (None, None)),
        (json!({"tracestate": "a=b", "host": "evil"}), (None, None)),
    ] {
        let sent = headers_of(&target, Event { headers: headers.to_string(), ..event("{}") }, 1000);
        let text = |name| sent.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
        assert_eq!((text("traceparent"), text("tracestate")), expected, "{headers}");
        assert_eq!((text("host"), text("webhook-timestamp")), (None, Some("1000")));
    }
}

proptest! {
    #[test]
    fn no_config_makes_the_parser_panic(text in "\\PC*", number: i64) {
        for value in [json!(text), json!(number), json!([text]), json!({text.as_str(): text})] {
            let known = ["url", "method", "headers", "secret", "body", "batch", "timeout", "dead_letter_on"];
            for field in known.into_iter().chain([text.as_str()]) {
                let _ = target(json!({field: value}));
            }
        }
    }

    #[test]
    fn no_event_header_makes_the_request_panic(headers in "\\PC*", state in "\\PC*") {
        let target = target(json!({})).unwrap();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for headers in [headers, json!({"traceparent": parent, "tracestate": state}).to_string()] {
            headers_of(&target, Event { headers, ..event("{}") }, i64::MAX);
        }
    }
}
