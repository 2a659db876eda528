//! What expressions mean, what is refused, and that hostile expressions are stopped.

use std::time::{Duration, Instant};

use chrono::{TimeZone as _, Utc};
use proptest::prelude::*;
use uuid::Uuid;

use super::{clauses::conjunction, *};
use crate::event::Event;

fn event(payload: &str) -> Event {
    Event {
        id: Uuid::from_u128(1),
        created_at: Utc.with_ymd_and_hms(2026, 11, 21, 10, 0, 0).unwrap(),
        key: Some("order-1".to_owned()),
        payload: payload.to_owned(),
        headers: r#"{"x-kind": "test"}"#.to_owned(),
        source: Some("shop".to_owned()),
        schema_version: Some(3),
        ..Event::sample(7)
    }
}

const ORDER: &str = r#"{"id": 1001, "total": 42.5, "paid": true, "note": null, "tags": ["a", "b"],
    "lines": [{"sku": "A", "n": 2}, {"sku": "B", "n": 5}],
    "big": 123456789012345678901234567890, "huge": 1e400, "odd-name": "x"}"#;

fn evaluate(filter: &str, payload: &str) -> FilterResult {
    Filter::compile(filter)
        .unwrap_or_else(|invalid| panic!("{filter}: {invalid}"))
        .evaluate(&Facts::new(&event(payload)))
}

fn transform(text: &str, payload: &str) -> Result<Changes, String> {
    Transform::compile(text)
        .unwrap_or_else(|invalid| panic!("{text}: {invalid}"))
        .apply(&Facts::new(&event(payload)))
}

fn payload(text: &str, of: &str) -> String {
    transform(text, of).unwrap().payload.unwrap()
}

#[test]
fn a_filter_sees_every_part_of_an_event() {
    for filter in [
        "topic == 'shop.orders.create' && topic.startsWith('shop.')",
        "key == \"order-1\"",
        "payload.id == 1001 && payload.total > 42 && payload.paid && payload.note == null",
        "payload.tags == ['a', 'b'] && ['a', 'b'] == payload.tags && 'a' in payload.tags \
         && !('c' in payload.tags)",
        "payload.lines.exists(line, line.sku == 'B' && line.n > 4)",
        "payload.lines.all(line, line.n > 1) && payload.lines.exists_one(line, line.n == 2)",
        "payload.lines.filter(line, line.n > 2).map(line, line.sku) == ['B']",
        "payload.lines.map(line, line.n > 2, line.sku) == ['B']",
        "size(payload.lines) == 2 && payload.lines.size() == 2",
        "payload['odd-name'] == 'x'",
        "has(payload.id) && !has(payload.missing)",
        "'id' in payload",
        "headers['x-kind'] == 'test'",
        "organization == null && source == 'shop' && user_id == null",
        "schema_version >= 3",
        "created_at > timestamp('2026-01-01T00:00:00Z') && created_at.getFullYear() == 2026",
        "id == '00000000-0000-0000-0000-000000000001'",
        "topic.matches('^shop\\\\.[a-z]+') && matches(topic, r'create$')",
        "topic.split('.')[1] == 'orders' && topic.upperAscii() == 'SHOP.ORDERS.CREATE'",
        "type(payload.id) == int && type(key) == string",
        "payload.big == payload.big",
        "payload.id == 1001.0",
        "true",
    ] {
        assert_eq!(evaluate(filter, ORDER), FilterResult::Match, "{filter}");
    }
}

#[test]
fn no_filter_compares_a_rounded_number() {
    let order = r#"{"i": 9007199254740993, "j": 9007199254740992, "d": 9007199254740992.0, 
                    "u": 9223372036854775809, "n": -9007199254740993, "list": [9007199254740992.0],
                    "small": 2.0}"#;
    for no in [
        "payload.i == 9007199254740992.0",
        "9007199254740992.0 == payload.i",
        "payload.i <= 9007199254740992.0",
        "payload.u == 9223372036854775808.0",
        "payload.n == -9007199254740992.0",
        "payload.n >= -9007199254740992.0",
        "payload.i == payload.d",
        "payload.d == 9007199254740993",
        "payload.i in [9007199254740992.0]",
        "payload.i in payload.list",
        "[payload.i] == [9007199254740992.0]",
        "payload.list == [9007199254740993]",
        "payload.i == 4503599627370496.0 * payload.small",
        "payload.i == 9007199254740992.0 + 0.0",
        "payload.i == (payload.small == 2.0 ? 9007199254740992.0 : 1.0)",
        "payload.i == double('9007199254740992')",
    ] {
        assert!(matches!(evaluate(no, order), FilterResult::NoMatch { .. }), "{no}");
        let yes = no.replace("payload.i", "payload.j").replace("740993", "740992");
        let yes = yes.replace("payload.u", "9223372036854775808u");
        let order = order.replace("-9007199254740993", "-9007199254740992");
        assert_eq!(evaluate(&yes, &order), FilterResult::Match, "{yes}");
    }
    // Integers that are written as doubles hold them only nearly.
    let written = r#"{"a": 3000000000.0001e8, "b": 300000000000010000, "c": 9007199254740993.0}"#;
    assert_eq!(payload("payload.a", written), "300000000000010000");
    for yes in ["payload.a == payload.b", "payload.c == 9007199254740993", "payload.a > payload.c"] {
        assert_eq!(evaluate(yes, written), FilterResult::Match, "{yes}");
    }
    // Both are rounded to 2^64 as doubles.
    let largest = r#"{"u": 18446744073709551615, "d": 18446744073709551616, "e": 1.8446744073709551616e19}"#;
    for no in [
        "payload.u == 18446744073709551616.0",
        "payload.u == payload.d",
        "payload.u in [18446744073709551616.0]",
        "payload.u == 9223372036854775808.0 * 2.0",
        "payload.d == 18446744073709551615u",
    ] {
        assert!(matches!(evaluate(no, largest), FilterResult::NoMatch { .. }), "{no}");
        let yes = no.replace("payload.u", "payload.e").replace("18446744073709551615u", "payload.e");
        assert_eq!(evaluate(&yes, largest), FilterResult::Match, "{yes}");
    }
    assert!(!matches!(evaluate("payload.u >= 18446744073709551616.0", largest), FilterResult::Match));
    for yes in [
        "payload.i != 9007199254740992.0",
        "payload.i > 9007199254740992.0",
        "payload.n < payload.small",
        "payload.small == 2",
    ] {
        assert_eq!(evaluate(yes, order), FilterResult::Match, "{yes}");
    }
}

#[test]
fn a_filter_that_cannot_be_evaluated_fails_and_says_why_without_the_payload() {
    for (filter, why) in [
        ("payload.missing == 1", "there is no key \"missing\""),
        ("payload.id > 'a'", "int and string"),
        ("payload.id", "type int, not bool"),
        ("payload.note.x == 1", "null"),
        ("payload.big > 5", "number"),
        ("payload.huge + 1 > 5", "number"),
        ("payload.lines[7].n == 1", "outside"),
        ("payload.id / 0 == 1", "division by zero"),
        ("int(payload.tags[0]) == 1", "int() does not accept"),
        ("payload.nothing()", "there is no"),
        ("payload.id.startsWith('1')", "startsWith"),
        ("key + 1 == 'x'", "string and int"),
    ] {
        let Ok(filter) = Filter::compile(filter) else { continue };
        let FilterResult::Failed { why: found, .. } = filter.evaluate(&Facts::new(&event(ORDER))) else {
            panic!("{filter} should fail")
        };
        assert!(found.contains(why), "{filter}: {found}");
        assert!(!found.contains("1001") && !found.contains("order-1"), "{found}");
    }
}

#[test]
fn a_part_that_is_false_outweighs_one_that_fails_and_is_named() {
    let filter = Filter::compile("(payload.missing == 1 && topic == 'x') && payload.id == 1001").unwrap();
    assert_eq!(filter.evaluate(&Facts::new(&event(ORDER))), FilterResult::NoMatch { part: 1 });
    assert_eq!(
        [0, 1, 2].map(|part| filter.part(part)),
        ["payload.missing == 1", "topic == 'x'", "payload.id == 1001"]
    );
    assert_eq!(evaluate("payload.missing == 1 || payload.id == 1001", ORDER), FilterResult::Match);
    for (text, parts) in [
        ("a && b || c", vec!["a && b || c"]),
        ("a ? b && c : d && e", vec!["a ? b && c : d && e"]),
        ("a == '&&' && b.all(x, x && y) // && c", vec!["a == '&&'", "b.all(x, x && y) // && c"]),
        ("(a || b) && (c)", vec!["a || b", "c"]),
        ("&&&", vec!["", "&"]),
        ("r'\\' && '''it's && ''' && \"\\\"&&\"", vec!["r'\\'", "'''it's && '''", "\"\\\"&&\""]),
    ] {
        assert_eq!(conjunction(text), parts, "{text}");
    }
}

#[test]
fn a_mistake_is_found_when_it_is_compiled_and_its_place_is_named() {
    for (text, place, why) in [
        ("payload.id ==", (1, 14), ""),
        ("payload.id = 1", (1, 12), ""),
        ("topic == 'a' &&\n  paylod.id == 1", (2, 3), "no variable \"paylod\""),
        ("now() > created_at", (1, 4), "no function now()"),
        ("topic.replace('a', 'b') == 'x'", (1, 14), "no function replace()"),
        ("topic.matches('(')", (1, 15), "regular expression"),
        ("topic.matches('\\\\d{99999}')", (1, 15), "regular expression"),
        ("topic.matches(key)", (1, 15), "must be a literal"),
        ("event({'payload': 1})", (1, 6), "only be used in transforms"),
        ("Message{a: 1} == 1", (1, 8), "messages"),
        ("", (1, 1), "empty"),
        ("payload.?a == 1", (1, 8), ""),
    ] {
        let invalid = Filter::compile(text).expect_err(text);
        assert_eq!((invalid.line, invalid.column), place, "{text}: {invalid}");
        assert!(invalid.why.contains(why), "{text}: {invalid}");
    }
    for (text, why) in [
        ("event({'payload': 1, 'topic': 'x'})", "no field \"topic\""),
        ("{'a': event({'payload': 1})}", "whole transform"),
        ("true ? event({}) : event({})", "whole transform"),
        ("event()", "one map"),
    ] {
        let invalid = Transform::compile(text).expect_err(text);
        assert!(invalid.why.contains(why), "{text}: {invalid}");
    }
    assert!(
        Filter::compile(&format!("topic == '{}'", "x".repeat(LONGEST))).unwrap_err().why.contains("at most")
    );
}

#[test]
fn a_payload_that_cannot_be_read_fails_only_the_expressions_that_read_it() {
    let deep = format!(r#"{{"id": 1, "deep": {}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let FilterResult::Failed { why, .. } = evaluate("payload.id == 1", &deep) else {
        panic!("it should fail")
    };
    assert!(why.contains("cannot be read: it is nested"), "{why}");
    assert_eq!(evaluate("topic == 'shop.orders.create'", &deep), FilterResult::Match);
    assert!(transform("{'id': payload.id}", &deep).unwrap_err().contains("nested"));
    assert!(transform("{'topic': topic}", &deep).is_ok());
    assert!(
        Containment::parse("{}").unwrap().holds(&Facts::new(&event(&deep))).unwrap_err().contains("nested")
    );
}

#[test]
fn a_transform_gives_a_payload_with_a_definite_text() {
    for (text, expected) in [
        ("{'b': payload.id, 'a': payload.tags}", r#"{"a":["a","b"],"b":1001}"#),
        ("payload.lines.map(line, line.sku)", r#"["A","B"]"#),
        ("{'z': 1, 'y': 2, 'x': 3}.map(k, k)", r#"["x","y","z"]"#),
        ("payload.total", "42.5"),
        ("2.0", "2.0"),
        ("payload.big", "123456789012345678901234567890"),
        (
            "{'huge': payload.huge, 'max': 18446744073709551615u}",
            r#"{"huge":1e400,"max":18446744073709551615}"#,
        ),
        ("created_at", "\"2026-11-21T10:00:00Z\""),
        ("'\\u0000\\\"é'", "\"\\u0000\\\"é\""),
        ("null", "null"),
        ("[payload.note, payload.paid]", "[null,true]"),
    ] {
        for _ in 0..3 {
            assert_eq!(payload(text, ORDER), expected, "{text}");
        }
    }
    // Integers beyond i64 and fractions that no double holds keep their digits.
    let exact = r#"{"a": 9223372036854775808, "b": 0.12345678901234567890123, "c": 10.50, "d": -1e-400,
        "e": [1000000000000000.2, 1000000000000000.3]}"#;
    let same = concat!(
        r#"{"a":9223372036854775808,"b":0.12345678901234567890123,"c":10.5,"d":-1e-400,"#,
        r#""e":[1000000000000000.2,1000000000000000.3]}"#,
    );
    assert_eq!(payload("payload", exact), same);
}

#[test]
fn an_error_repeats_of_the_event_only_what_stands_in_the_expression() {
    let payload = r#"{"prices": {}, "email": "alice@example.com", "h": {"alice@example.com": "x"}}"#;
    for text in [
        "payload.prices[payload.email] > 1",
        "{'a': payload.prices[payload.email]}",
        "event(payload)",
        "event({'headers': payload.h})",
    ] {
        let error = transform(text, payload).unwrap_err();
        assert!(!error.contains("alice") && !error.contains("prices\""), "{text}: {error}");
    }
}

#[test]
fn the_result_of_a_transform_has_a_limit() {
    let error = transform(
        "['x'].map(a, payload.id).map(b, 'xxxxxxxxxxxxxxxx') \
         .map(c, [c].map(d, d + d + d + d + d + d + d + d))",
        ORDER,
    );
    assert!(error.is_ok());
    let wide = format!("[{}].map(a, payload)", vec!["1"; 400].join(","));
    let error = transform(&wide, &format!("\"{}\"", "x".repeat(4_000))).unwrap_err();
    assert!(error.contains("at most 1048576"), "{error}");
}

#[test]
fn a_transform_that_cannot_be_written_names_the_path() {
    for (text, why) in [
        ("{'a': [1, b'x']}", "its value.a[1] is of type bytes"),
        ("{'a': {1: 2}}", "its value.a has a key that is not a string"),
        ("{'a': duration('1h')}", "its value.a is of type google.protobuf.Duration"),
        ("1.0 / 0.0", "its value is infinite"),
        ("payload.missing", "there is no key \"missing\""),
        ("event({'headers': {'A': 'b'}})", "the invalid name \"A\""),
        ("event({'headers': {'a': 1}})", "headers.a must be a string"),
        ("event({'headers': {'a': 'b\\n'}})", "control character"),
        ("event({'key': 1})", "key must be a string or null"),
        ("event(payload)", "event() has a field that is none of"),
        ("event({'payload': {'x': type(1)}})", "payload.x is of type type"),
        ("event({'sink': 'x'})", "sink must be a map"),
    ] {
        let error = transform(text, ORDER).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn event_changes_what_it_names_and_nothing_else() {
    let changes = transform(
        "event({'payload': payload.id, 'headers': {'x-a': 'b'}, 'key': null, \
         'sink': {'topic': 'orders.eu'}})",
        ORDER,
    )
    .unwrap();
    assert_eq!(changes.payload.as_deref(), Some("1001"));
    assert_eq!(changes.headers.as_deref(), Some(r#"{"x-a":"b"}"#));
    assert_eq!(changes.key, Some(None));
    assert_eq!(changes.sink.unwrap()["topic"], "orders.eu");
    assert_eq!(
        transform("event({'key': topic})", ORDER).unwrap(),
        Changes { key: Some(Some("shop.orders.create".into())), ..Changes::default() }
    );
}

#[test]
fn nesting_at_the_limits_fits_the_stack_of_a_worker() {
    let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
    assert_eq!(
        evaluate("payload == payload && payload != [payload] && [payload] == [payload]", &deep),
        FilterResult::Match
    );
    assert_eq!(payload("payload", &deep), deep);
    for (before, inner, after) in [
        ("[", "payload", "]"),
        ("[1].map(a, ", "a", ")"),
        ("dyn(", "1", ")"),
        ("(true ? ", "1", " : 2)"),
        ("(1 + ", "1", ")"),
    ] {
        let runs = |depth: usize| {
            Filter::compile(&format!("[] != {}{inner}{}", before.repeat(depth), after.repeat(depth)))
        };
        let most = (1..).take_while(|depth| runs(*depth).is_ok()).last().unwrap();
        assert!(most >= 7, "{before}");
        let _ = runs(most).unwrap().evaluate(&Facts::new(&event(&deep)));
    }
}

/// Without the meter each of these would take days or all memory.
#[test]
fn a_hostile_expression_ends_soon_with_a_reason() {
    let list = format!("[{}]", vec!["1"; 900].join(","));
    let wide =
        format!("{{\"text\": \"{}\", \"list\": [{}]}}", "a".repeat(100_000), vec!["1"; 70_000].join(","));
    let nested = |inner: &str| format!("{list}.exists(a, {list}.exists(b, {list}.exists(c, {inner})))");
    for filter in [
        nested("a + b + c == 0"),
        format!("{list}.map(a, {list}.map(b, {list}.map(c, [a, b, c]))) == []"),
        format!("[payload]{} == []", ".map(a, [a, a, a, a])".repeat(9)),
        format!("[payload.text]{} == []", ".map(a, a + a + a)".repeat(9)),
        format!("[payload.list]{} == []", ".map(a, a + a + a)".repeat(9)),
        "payload.list.all(a, payload.list.all(b, payload.text.contains('b') || true))".to_owned(),
        "payload.list.all(a, payload.text.matches('(a*)*b') || true)".to_owned(),
        "payload.list.all(a, payload == payload)".to_owned(),
        "payload.list.all(a, 2 in payload.list || true)".to_owned(),
        format!("[{}] == []", vec!["payload"; 800].join(",")),
        format!("{}false", "size(payload.text.split('')) < 0 || ".repeat(40)),
    ] {
        let began = Instant::now();
        let FilterResult::Failed { why, .. } = evaluate(&filter, &wide) else {
            panic!("it should fail: {}", short(&filter))
        };
        assert!(why.contains("work limit"), "{}: {why}", short(&filter));
        assert!(began.elapsed() < Duration::from_secs(5), "{} took {:?}", short(&filter), began.elapsed());
    }
}

#[test]
fn an_expression_nested_too_deep_is_refused_and_not_run() {
    for text in [
        format!("{}true{}", "(".repeat(3_000), ")".repeat(3_000)),
        format!("1{} == 2", "+1".repeat(3_000)),
        format!("{}true", "!".repeat(7_001)),
        format!("payload{} == 1", ".a".repeat(3_000)),
        format!("payload{} == 1", "[0]".repeat(2_500)),
        format!("{}1{} == 1", "[".repeat(3_000), "]".repeat(3_000)),
        format!("true{}", "?true:true".repeat(700)),
    ] {
        match Filter::compile(&text) {
            Err(_) => {}
            Ok(filter) => assert_ne!(
                filter.evaluate(&Facts::new(&event(ORDER))),
                FilterResult::Match,
                "{}",
                short(&text)
            ),
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_compiling_or_evaluating_panic(
        text in "[a-z0-9 .()\\[\\]{}'\"\\\\&|!?:,=<>+*/%@_-]{0,80}",
    ) {
        if let Ok(filter) = Filter::compile(&text) {
            let result = filter.evaluate(&Facts::new(&event(ORDER)));
            if let FilterResult::Failed { why, .. } = result {
                prop_assert!(!why.contains("panic"), "{}: {}", text, why);
            }
        }
        let _ = conjunction(&text);
    }

    #[test]
    fn an_untouched_payload_comes_out_with_its_value(
        number in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?(e-?[0-9]{1,3})?",
    ) {
        prop_assert!(json::is_same_number(&payload("payload", &number), &number));
    }
}
