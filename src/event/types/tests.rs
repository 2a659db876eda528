//! Checks and upcasts of events, without a database.

use super::*;

fn row(id: i64, topic: &str, version: i32, schema: &str, upcast: Option<&str>) -> Row {
    Row {
        id,
        topic: topic.to_owned(),
        version,
        schema: schema.to_owned(),
        mode: "reject".to_owned(),
        description: None,
        upcast: upcast.map(ToOwned::to_owned),
        state_reason: None,
    }
}

fn types(rows: impl IntoIterator<Item = Row>) -> Types {
    Types::new(rows.into_iter().map(|row| Arc::new(EventType::read(row))))
}

fn event(payload: &str, version: Option<i32>) -> Arc<Event> {
    Arc::new(Event { payload: payload.to_owned(), schema_version: version, ..Event::sample(1) })
}

fn refused(types: &Types, payload: &str, version: Option<i32>, wanted: Option<i32>) -> (RefusalKind, String) {
    let refusal = types.prepare(&event(payload, version), wanted, &mut Vec::new()).unwrap_err();
    (refusal.kind, refusal.why)
}

#[test]
fn an_event_is_checked_by_every_type_of_its_topic_and_version_and_by_no_other() {
    let types = types([
        row(1, "shop.**", 1, r#"{"required": ["id"]}"#, None),
        row(2, "shop.orders.*", 1, r#"{"required": ["total"]}"#, None),
        row(3, "shop.orders.*", 2, "false", None),
        row(4, "other", 1, "false", None),
    ]);
    let (reason, why) = refused(&types, r#"{"id": 1}"#, None, None);
    assert_eq!(
        (reason, why.as_str()),
        (RefusalKind::SchemaMismatch, "event type shop.orders.* version 1: /: required \"total\"")
    );
    assert!(
        refused(&types, r#"{"total": 1}"#, Some(1), None).1.starts_with("event type shop.** version 1: ")
    );
    let good = event(r#"{"id": 1, "total": 1}"#, None);
    assert!(Arc::ptr_eq(&types.prepare(&good, None, &mut Vec::new()).unwrap(), &good), "nothing is copied");
    assert!(refused(&types, "{}", Some(2), None).1.contains("version 2: /: falseSchema"));
    assert!(
        types.prepare(&event("{}", Some(3)), None, &mut Vec::new()).is_ok(),
        "there is no type of version 3"
    );
}

#[test]
fn a_schema_that_cannot_be_used_and_one_that_warns_stop_nothing() {
    let mut lenient = row(2, "**", 1, "{\"type\": \"object\"}", None);
    lenient.mode = "warn".to_owned();
    let types = types([row(1, "**", 1, r#"{"$ref": "https://example.com/"}"#, None), lenient]);
    let mut warnings = Vec::new();
    assert!(types.prepare(&event("[]", None), None, &mut warnings).is_ok());
    assert!(types.prepare(&event("1e400", None), None, &mut warnings).is_ok());
    let causes: Vec<_> = warnings.iter().map(|warning| (warning.id, warning.cause.code())).collect();
    assert_eq!(causes, [(1, "invalid_type"), (2, "mismatch"), (1, "invalid_type"), (2, "unreadable")]);
    let problems: Vec<_> = types.iter().filter_map(|one| one.problem()).collect();
    assert!(problems.len() == 1 && problems[0].starts_with("schema: $ref: "), "{problems:?}");
}

#[test]
fn an_old_event_is_brought_to_the_wanted_version_step_by_step() {
    let types = types([
        row(
            1,
            "shop.**",
            1,
            r#"{"required": ["id"]}"#,
            Some(r#"{"number": payload.id, "was": schema_version}"#),
        ),
        row(2, "shop.orders.*", 2, "false", Some(r#"{"order": payload, "was": schema_version}"#)),
        row(3, "shop.orders.create", 3, r#"{"required": ["order"]}"#, None),
    ]);
    let made = |payload: &str, version, wanted| {
        types.prepare(&event(payload, version), wanted, &mut Vec::new()).unwrap()
    };
    let upcast = made(r#"{"id": 12345678901234567890123}"#, None, Some(3));
    assert_eq!(upcast.schema_version, Some(3));
    let payload: serde_json::Value = serde_json::from_str(&upcast.payload).unwrap();
    assert_eq!((payload["was"].as_i64(), payload["order"]["was"].as_i64()), (Some(2), None), "{payload}");
    assert!(
        upcast.payload.contains("12345678901234567890123"),
        "a number keeps its digits: {}",
        upcast.payload
    );
    assert_eq!(made(r#"{"id": 1}"#, None, Some(1)).schema_version, Some(1));
    let new = event("{\"order\": 1}", Some(3));
    let as_it_is = types.prepare(&new, Some(3), &mut Vec::new()).unwrap();
    assert_eq!(as_it_is, new);
    assert!(!Arc::ptr_eq(&as_it_is, &new), "a batch sends upcast events for all deliveries or for none");
    assert_eq!(types.newest(&event("{}", None)), 3);
}

#[test]
fn an_upcast_that_is_missing_ambiguous_or_fails_is_refused_with_the_reason() {
    let types = types([
        row(1, "**", 1, "true", Some("{\"n\": payload.canary / 0}")),
        row(2, "**", 2, "true", None),
        row(3, "**", 4, "true", Some("payload")),
        row(4, "shop.**", 4, "true", Some("payload")),
        row(5, "**", 5, "true", Some("payload.")),
        row(6, "**", 6, "true", Some("event({\"key\": \"k\"})")),
        row(7, "**", 7, "true", Some("{\"n\": 1}")),
        row(8, "**", 8, r#"{"required": ["id"]}"#, None),
    ]);
    for (version, wanted, reason, why) in [
        (1, 2, RefusalKind::UpcastFailed, "version 1: upcast: division by zero"),
        (2, 3, RefusalKind::UpcastFailed, "no event type of this topic has an upcast from version 2 to 3"),
        (1, 4, RefusalKind::UpcastFailed, "no event type of this topic has an upcast from version 2 to 3"),
        (4, 5, RefusalKind::UpcastFailed, "two upcasts from version 4"),
        (5, 6, RefusalKind::UpcastFailed, "version 5: its upcast cannot be used: line 1, column "),
        (6, 7, RefusalKind::UpcastFailed, "only be used in transforms"),
        (3, 2, RefusalKind::UpcastFailed, "the event has version 3; the subscription asks for version 2"),
        (7, 8, RefusalKind::SchemaMismatch, "version 8, after upcasting from version 7: /: required \"id\""),
    ] {
        let refusal = refused(&types, "{\"canary\": 4711}", Some(version), Some(wanted));
        assert!(refusal.0 == reason && refusal.1.contains(why), "{refusal:?} should say {why:?}");
        assert!(!refusal.1.contains("4711"), "{refusal:?}");
    }
}

#[test]
fn a_version_far_away_costs_one_lookup() {
    let types = types([row(1, "**", 1, "true", Some("payload"))]);
    let refusal = refused(&types, "{}", None, Some(i32::MAX));
    assert!(refusal.1.contains("from version 2 to 3"), "{refusal:?}");
}
