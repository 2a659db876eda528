//! Values of all types in a payload, including those that are too large or that jsonb cannot hold.

use serde_json::{Value, json};

use super::Shop;

/// The value in the payload of a table with a column of this type, inserted alone and with other rows.
async fn shown(shop: &mut Shop, kind: &str, value: &str) -> Value {
    shop.owner(&format!(
        "drop table if exists held; \
         create table held (id int primary key, v {kind}); select outbox.capture('held')"
    ))
    .await;
    let one = shop.write(&format!("insert into held values (1, {value})")).await;
    let many = shop.write(&format!("insert into held values (2, {value}), (3, null)")).await;
    assert_eq!((one.len(), many.len()), (1, 2), "{kind}");
    assert_eq!(one[0].2["row"]["v"], many[0].2["row"]["v"], "{kind}");
    assert_eq!(many[1].2["row"]["v"], Value::Null, "{kind}");
    assert_eq!(shop.write("update held set v = v").await, [], "{kind}: no change");
    let update = shop.write("update held set v = null").await;
    assert_eq!(update.len(), 2, "{kind}");
    assert_eq!(update[0].2["previous"]["v"], one[0].2["row"]["v"], "{kind}");
    let alone = shop.write(&format!("update held set v = {value} where id = 1")).await;
    assert_eq!(alone[0].2["row"]["v"], one[0].2["row"]["v"], "{kind}");
    // Uses row triggers.
    shop.owner("select outbox.capture('held', condition => 'new.id = 9', operations => '{insert}')").await;
    assert_eq!(
        shop.write(&format!("insert into held values (9, {value})")).await[0].2["row"]["v"],
        one[0].2["row"]["v"],
        "{kind}"
    );
    one[0].2["row"]["v"].clone()
}

#[tokio::test]
async fn values_of_every_type_are_as_documented_whatever_the_session_settings() {
    let types = "create type mood as enum ('sad', 'happy'); \
                 create domain email as text; create domain moody as mood;
                 create type inner_one as (m mood, \"a b\" json); \
                     create type pair as (a int, \"part\" inner_one, item text);
                 create type spans as range (subtype = time)";
    let mut shop = Shop::new(types).await;
    // Once with types owned by the superuser, once with types of another owner.
    for owner in ["postgres", super::APPLICATION] {
        for kind in ["type mood", "domain email", "domain moody", "type inner_one", "type pair", "type spans"]
        {
            shop.owner(&format!("alter {kind} owner to {owner}")).await;
        }
        shop.write(
            "set timezone = 'Asia/Tokyo'; set datestyle = 'German'; \
             set intervalstyle = 'postgres_verbose'; \
             set bytea_output = 'escape'; set extra_float_digits = -10",
        )
        .await;
        for (kind, value, expected) in [
            ("int", "-7", json!(-7)),
            ("bigint", "9007199254740993", json!(9_007_199_254_740_993_i64)),
            ("numeric", "'NaN'", json!("NaN")),
            ("numeric", "1.50", json!(1.5)),
            ("float8", "'-Infinity'", json!("-Infinity")),
            ("float8", "0.1::float8 + 0.2::float8", json!(0.300_000_000_000_000_04)),
            ("boolean", "true", json!(true)),
            ("text", "E'a\\u0001\\n\"\\\\ü'", json!("a\u{1}\n\"\\ü")),
            ("bytea", "'\\x00ff'", json!("\\x00ff")),
            ("uuid", "'01890a5d-ac96-774b-bcce-b302099a8057'", json!("01890a5d-ac96-774b-bcce-b302099a8057")),
            ("date", "'infinity'", json!("infinity")),
            ("date", "'0044-03-15 BC'", json!("0044-03-15 BC")),
            ("timestamp", "timestamp '2026-01-02 03:04:05.06'", json!("2026-01-02T03:04:05.06")),
            ("timestamptz", "timestamptz '2026-01-02 03:04:05+09'", json!("2026-01-01T18:04:05+00:00")),
            ("timestamptz", "'-infinity'", json!("-infinity")),
            ("interval", "'1 day 2 hours'", json!("P1DT2H")),
            ("int[]", "'{{1,2},{3,null}}'", json!([[1, 2], [3, null]])),
            ("int4range", "'[1,5)'", json!("[1,5)")),
            ("daterange", "'[2026-01-01,2026-02-01)'", json!("[2026-01-01,2026-02-01)")),
            ("jsonb", "'{\"a\": [1, null]}'", json!({"a": [1, null]})),
            ("json", "'{\"a\": 1, \"a\": 2}'", json!({"a": 2})),
            ("json", r#"'{"a": "\u0000"}'"#, json!(r#"{"a": "\u0000"}"#)),
            ("json", r#"'["\ud800"]'"#, json!(r#"["\ud800"]"#)),
            ("json", "'1e999999'", json!("1e999999")),
            ("json[]", r#"array['{"a": 1}', '"\u0000"']::json[]"#, json!([{"a": 1}, r#""\u0000""#])),
            ("xml", "'<a/>'", json!("<a/>")),
            ("tsvector", "'a:1 b:2'", json!("'a':1 'b':2")),
            ("inet", "'10.0.0.1/8'", json!("10.0.0.1/8")),
            ("mood", "'happy'", json!("happy")),
            ("moody", "'happy'", json!("happy")),
            ("mood[]", "'{{happy,null},{sad,sad}}'", json!([["happy", null], ["sad", "sad"]])),
            ("moody[]", "'{happy,null}'", json!(["happy", null])),
            ("email", "'a@b'", json!("a@b")),
            ("email[]", "'{a@b}'", json!(["a@b"])),
            ("spans", "'[10:00,11:00)'", json!("[10:00:00,11:00:00)")),
            (
                "pair",
                r#"row(1, row('sad', '{"x": 1}'), null)"#,
                json!({"a": 1, "part": {"m": "sad", "a b": {"x": 1}}, "item": null}),
            ),
            ("pair", "row(null, null, null)", json!({"a": null, "part": null, "item": null})),
            (
                "pair[]",
                r#"array[row(1, row('sad', null), 'i'), null]::pair[]"#,
                json!([{"a": 1, "part": {"m": "sad", "a b": null}, "item": "i"}, null]),
            ),
            ("pair[]", "'{}'", json!([])),
        ] {
            assert_eq!(
                shown(&mut shop, kind, value).await,
                expected,
                "{kind} {value}, of types owned by {owner}"
            );
        }
    }
    shop.end().await;
}

#[tokio::test]
async fn columns_may_be_called_anything() {
    let names = [
        "n",
        "row",
        "new",
        "old",
        "outbox_after",
        "a\"b",
        "a.b",
        "a,b",
        "a'b",
        "{row}",
        "%s",
        "$1",
        "part",
        "item",
        "ü",
        "A b",
        "held",
        "payload",
    ];
    let columns: Vec<String> =
        names.iter().map(|name| format!("\"{}\" text", name.replace('"', "\"\""))).collect();
    let mut shop = Shop::new("create schema \"My-\"\"shop\"\"\"").await;
    for extra in ["extra int", "extra json"] {
        shop.owner(&format!(
            "drop table if exists \"My-\"\"shop\"\"\".\"or'ders\"; create table \"My-\"\"shop\"\"\".\"or'ders\" (\"i%d\" int primary key, {}, {extra});
             select outbox.capture('\"My-\"\"shop\"\"\".\"or''ders\"')",
            columns.join(", ")
        ))
        .await;
        for count in [1, 2] {
            let insert = format!(
                "insert into \"My-\"\"shop\"\"\".\"or'ders\" select i, {} from generate_series(1, {count}) as i",
                vec!["'x'"; names.len()].join(", ")
            );
            let events = shop.write(&insert).await;
            assert_eq!(events.len(), count);
            assert_eq!(
                (events[0].0.as_str(), events[0].1.as_deref()),
                ("My-\"shop\".or'ders.create", Some("1"))
            );
            assert!(names.iter().all(|name| events[0].2["row"][*name] == "x"), "{events:?}");
            assert_eq!(
                shop.write("update \"My-\"\"shop\"\"\".\"or'ders\" set \"n\" = 'y'").await[0].2["changed"],
                json!(["n"])
            );
            assert_eq!(shop.write("delete from \"My-\"\"shop\"\"\".\"or'ders\"").await.len(), count);
        }
    }
    shop.end().await;
}

#[tokio::test]
async fn values_stored_out_of_line_are_in_the_payload_even_if_not_updated() {
    let mut shop = Shop::new(
        "create table pages (id int primary key, title text, body text); \
         alter table pages alter body set storage external; select outbox.capture('pages')",
    )
    .await;
    let body = "x".repeat(100_000);
    shop.write("insert into pages values (1, 'a', repeat('x', 100000)), (2, 'b', repeat('x', 100000))").await;
    for update in
        ["update pages set title = title || '!' where id = 1", "update pages set title = title || '?'"]
    {
        for (_, _, payload) in shop.write(update).await {
            assert_eq!(payload["row"]["body"], body);
            assert_eq!(
                (payload["changed"].clone(), payload["previous"].as_object().unwrap().len()),
                (json!(["title"]), 1)
            );
        }
    }
    shop.end().await;
}

/// The application's write does not fail; the event lists the omitted columns.
#[tokio::test]
async fn a_payload_that_is_too_large_leaves_out_its_largest_values_and_names_them() {
    let mut shop = Shop::new(
        "create table pages (id int primary key, title text, body text, summary text); select outbox.capture('pages');
         create table wide (id int primary key); select outbox.capture('wide')",
    )
    .await;
    let created = shop
        .write(
            "insert into pages values (1, 'a', repeat(e'\\u0001', 200000), \
             repeat('é', 70000)), (2, 'b', repeat('x', 262000), '')",
        )
        .await;
    assert_eq!(
        created[0].2,
        json!({"row": {"id": 1, "title": "a", "summary": "é".repeat(70_000)}, "omitted": ["body"]})
    );
    assert_eq!(created[1].2["row"]["body"].as_str().unwrap().len(), 262_000, "just small enough");
    let updated = shop.write("update pages set body = repeat('y', 240000), title = 'c' where id = 2").await;
    assert_eq!(
        updated[0].2,
        json!({
            "row": {"id": 2, "title": "c", "summary": ""},
            "changed": ["body", "title"], "previous": {"title": "b"}, "omitted": ["body"],
        })
    );
    let deleted = shop.write("update pages set summary = repeat('z', 240000); delete from pages").await;
    assert_eq!(deleted.last().unwrap().2["omitted"], json!(["body"]));
    // Many values that are not large: as many are omitted as necessary.
    let names: Vec<String> = (0..1_500)
        .map(|n| format!("column_with_a_name_that_is_as_long_as_a_name_can_be_in_sql_{n:04}"))
        .collect();
    shop.owner(&format!(
        "alter table wide {}",
        names.iter().map(|name| format!("add {name} smallint")).collect::<Vec<_>>().join(", ")
    ))
    .await;
    let values = vec!["32767"; names.len()].join(", ");
    for sql in [
        format!("insert into wide values (1, {values})"),
        format!(
            "update wide set {}",
            names.iter().map(|name| format!("{name} = 0")).collect::<Vec<_>>().join(", ")
        ),
    ] {
        let written = shop.write(&sql).await;
        assert_eq!(written[0].1.as_deref(), Some("1"));
        let payload = written[0].2.as_object().unwrap();
        let (kept, omitted) = (
            payload["row"].as_object().unwrap().len(),
            payload.get("omitted").map_or(0, |names| names.as_array().unwrap().len()),
        );
        assert_eq!(kept + omitted, names.len() + 1);
        assert_eq!(omitted > 0, sql.starts_with("update"), "{omitted} were left out");
    }
    shop.end().await;
}
