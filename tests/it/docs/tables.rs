//! Tables generated from the code. `UPDATE_DOCS=1 cargo test --test it docs::tables` writes them.

use std::fs;

use pgoutbox::{admin::TraceStatus, live::Code, relay::telemetry::METRICS};
use regex::Regex;

use super::{
    Page,
    commands::{Binary, Help},
    first_table, pgoutbox, root,
};

/// Compares the table between two markers with the expected one, or writes it.
pub(crate) fn assert_table(name: &str, marker: &str, head: &str, rows: &[String]) {
    let line = format!("|{}", " --- |".repeat(head.matches('|').count() - 1));
    assert_between(name, marker, &format!("{head}\n{line}\n{}\n", rows.join("\n")));
}

/// Compares the text between two markers with the expected one, or writes it.
pub(crate) fn assert_between(name: &str, marker: &str, made: &str) {
    let Page { text, .. } = Page::read(name);
    let (begin, end) = (format!("<!-- {marker}:begin -->\n"), format!("<!-- {marker}:end -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{name} should hold {begin}"));
    let (kept, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{name} should hold {end}"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join(name), format!("{before}{begin}{made}{end}{after}")).unwrap();
    } else {
        assert_eq!(kept, made, "{marker} of {name} is old; this test writes it with UPDATE_DOCS=1");
    }
}

/// A table that the program prints, with two columns below their names.
fn printed(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_once("  "))
        .map(|(code, meaning)| (code, meaning.trim()))
        .collect()
}

/// One test for all tables, because several of them are in one file.
#[test]
fn the_tables_of_the_book_equal_the_code() {
    let row = |(code, meaning): &(&str, &str)| format!("| `{code}` | {meaning} |");
    let reasons = pgoutbox(&["explain"]);
    let rows: Vec<_> = printed(&reasons).iter().map(row).collect();
    assert!(rows.len() > 20, "{reasons}");
    assert_table("docs/reference/reasons.md", "reasons", "| reason | meaning |", &rows);
    let rows: Vec<_> =
        TraceStatus::ALL.iter().map(|status| row(&(status.code(), status.meaning()))).collect();
    assert_table("docs/tasks/not-delivered.md", "trace", "| status | meaning |", &rows);
    // Names as Prometheus shows them.
    let rows: Vec<_> = METRICS
        .iter()
        .map(|(name, kind, meaning)| {
            let name = match kind {
                kind if kind.contains("Counter") => format!("{name}_total"),
                kind if kind.contains("Histogram") || kind.ends_with("Seconds") => {
                    format!("{name}_bucket` `{name}_sum` `{name}_count")
                }
                _ => (*name).to_owned(),
            };
            row(&(&name, meaning.trim()))
        })
        .collect();
    assert_table("docs/operate/metrics.md", "metrics", "| metric | meaning |", &rows);

    let page = "docs/reference/command-line.md";
    let help = pgoutbox(&["--help"]);
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let codes = codes.lines().map_while(|line| line.trim().split_once("  "));
    let rows: Vec<_> = codes.map(|(code, meaning)| format!("| {code} | {meaning} |")).collect();
    assert!(rows.len() >= 6, "{help}");
    assert_table(page, "exit-codes", "| code | meaning |", &rows);
    let mut rows = Vec::new();
    add_commands(&Binary::default(), &[], &mut rows);
    assert_table(page, "commands", "| command | does | options |", &rows);
}

#[test]
fn the_codes_that_live_clients_are_told_equal_those_of_the_code() {
    let page = "docs/live/protocol.md";
    let rows: Vec<_> =
        Code::ALL.iter().map(|code| format!("| `{}` | {} |", code.word(), code.meaning())).collect();
    assert!(rows.len() > 15, "{rows:?}");
    assert_table(page, "codes", "| code | means |", &rows);

    let mut documented = first_table(&Page::read(page).section("## How a connection ends").text);
    let source = fs::read_to_string(root().join("src/http/live/ws.rs")).unwrap();
    let code = Regex::new(r"=> \((1\d{3}), ").unwrap();
    let mut closes: Vec<_> = code.captures_iter(&source).map(|found| found[1].to_owned()).collect();
    documented.sort();
    closes.sort();
    assert!(closes.len() > 3, "{closes:?}");
    assert_eq!(documented, closes, "{page}: the codes with which src/http/live/ws.rs closes a connection");

    let source = fs::read_to_string(root().join("src/live/message.rs")).unwrap();
    let fields = |name: &str| {
        let (_, rest) = source.split_once(&format!("pub struct {name} {{")).unwrap();
        let (body, _) = rest.split_once("\n}").unwrap();
        let field = Regex::new(r"pub ([a-z_]+):").unwrap();
        field.captures_iter(body).map(|found| found[1].to_owned()).collect::<Vec<_>>()
    };
    let documented = first_table(&Page::read(page).section("### subscribe").text);
    assert_eq!(documented, fields("Subscribe"), "{page}: the fields of subscribe");
}

/// A row for each command that needs no subcommand.
fn add_commands(binary: &Binary, path: &[String], rows: &mut Vec<String>) {
    let help = binary.help(path);
    if help.runs_alone() {
        let Help { about, usage, options, .. } = &*help;
        let general = ["--config", "--database-url", "--source", "--utc", "--help", "-h"];
        let own = options
            .iter()
            .filter(|option| !general.contains(&option.as_str()))
            .map(|option| format!("`{option}`"));
        let call = format!("{} {usage}", path.join(" "));
        let row = format!(
            "| `{}` | {} | {} |",
            call.trim(),
            about.replace('|', "\\|"),
            own.collect::<Vec<_>>().join(" ")
        );
        rows.push(row.replace("|  |", "| |"));
    }
    for command in &help.commands {
        add_commands(binary, &[path, std::slice::from_ref(command)].concat(), rows);
    }
}

/// Parameters of a function, in order.
fn parameters(function: &str) -> Vec<String> {
    let schema = fs::read_to_string(root().join("sql/schema.sql")).unwrap();
    let (_, rest) = schema.split_once(&format!("CREATE FUNCTION outbox.{function}(")).unwrap();
    let (list, _) = rest.split_once(") RETURNS").unwrap();
    list.split(", ").map(|one| one.split(' ').next().unwrap().trim_matches('"').to_owned()).collect()
}

#[test]
fn the_tables_of_arguments_have_those_of_the_functions_and_no_other() {
    for (page, section, function, but) in [
        ("docs/publish.md", "## Arguments", "publish", ""),
        ("docs/subscribe.md", "## Arguments", "subscribe", ""),
        ("docs/capture.md", "## Options", "capture", "table"),
        ("docs/bridge.md", "## Arguments", "bridge", "table"),
        ("docs/event-types.md", "# Event types: what payloads look like", "define_event_type", ""),
        ("docs/operate/dead-letters.md", "# Dead letters", "redrive", ""),
        ("docs/tasks/newest-state.md", "## What `outbox.latest` returns and costs", "latest", ""),
        ("docs/tasks/send-again.md", "# Send again what was lost", "replay", ""),
        ("docs/operate/deliveries.md", "# Deliveries that wait", "cancel", ""),
    ] {
        let mut documented = first_table(&Page::read(page).section(section).text);
        let mut known = parameters(function);
        known.retain(|name| name != but);
        documented.sort();
        known.sort();
        assert_eq!(documented, known, "{page}: the arguments of outbox.{function}");
    }
}

#[test]
fn the_functions_of_the_book_are_those_that_operators_and_publishers_call() {
    let schema = fs::read_to_string(root().join("sql/schema.sql")).unwrap();
    let page = Page::read("docs/reference/sql.md");
    for granted in schema.lines().filter_map(|line| line.strip_prefix("COMMENT ON FUNCTION outbox.")) {
        let (name, _) = granted.split_once('(').unwrap();
        let internal = ["call_function", "declare_handler"].contains(&name);
        assert!(
            internal || page.text.contains(&format!("`outbox.{name}(")),
            "docs/reference/sql.md: outbox.{name} is missing"
        );
    }
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_book() {
    let all = Page::read("docs/how-fast.md").text;
    let readme = Page::read("README.md").section("## How fast").text;
    let rows: Vec<_> = readme.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 3);
    for row in rows {
        assert!(
            all.lines().any(|line| line == row),
            "docs/how-fast.md has no row like this one of README.md: {row}"
        );
    }
}

#[test]
fn the_page_of_sizing_counts_the_connections_that_a_relay_asks_for() {
    let page = Page::read("docs/operate/sizing.md").text;
    let said = ["up to **11** connections to its database (`pool_size` + 7)", "**43**", "_pool_size` | 32 |"];
    for said in said {
        assert!(page.contains(said), "{said}");
    }
    for (functions, counted) in [(32, "up to 43:"), (0, "up to 11:")] {
        let wanted = pgoutbox::store::connections_wanted(4, functions);
        assert!(wanted.starts_with(counted), "docs/operate/sizing.md counts {counted} a relay: {wanted}");
    }
}
