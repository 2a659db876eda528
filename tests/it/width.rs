//! The width of lines. rustfmt does not check comments, and leaves code alone that it cannot shorten.

use crate::tidy::files;

/// Characters in a line, as in rustfmt.toml.
const WIDTH: usize = 110;
/// Characters in a line of SQL.
const SQL_WIDTH: usize = 100;

#[test]
fn no_line_is_wider_than_the_code() {
    let files = ["src", "tests/it"].into_iter().flat_map(|folder| files(folder, ".rs"));
    let wide: Vec<String> = files.flat_map(|(name, text)| named(&name, wide(&text))).collect();
    assert!(wide.is_empty(), "wider than {WIDTH} characters:\n{}", wide.join("\n"));
}

#[test]
fn no_line_of_sql_is_wider_than_that() {
    let generated = |name: &str| name.ends_with("schema.sql");
    let files = ["migrations", "sql"].into_iter().flat_map(|folder| files(folder, ".sql"));
    let wide: Vec<String> = files
        .filter(|(name, _)| !generated(name))
        .flat_map(|(name, text)| named(&name, wide_sql(&text)))
        .collect();
    assert!(wide.is_empty(), "wider than {SQL_WIDTH} characters:\n{}", wide.join("\n"));
}

fn named(file: &str, lines: Vec<usize>) -> Vec<String> {
    lines.into_iter().map(|number| format!("{file}:{number}")).collect()
}

#[test]
fn only_a_string_or_a_single_word_of_a_comment_may_be_wider() {
    let long = "long ".repeat(30);
    let url = format!("https://example.com/{}", "x".repeat(WIDTH));
    for (text, expected) in [
        (format!("    say(\"{long}\");"), vec![1]),
        (format!("    say(\n        \"{long}\",\n    );"), vec![]),
        (format!("let sql = r#\"select \"1\"\n{long}\"#;"), vec![]),
        (format!("let sql = r#\"{long}\"\n\"#;"), vec![1]),
        (format!("('\"', '\\'');\nlet a: &'static str;\n{long}"), vec![3]),
        (format!("\"\\\"\";\n{long}"), vec![2]),
        (format!("// {long}\n//! <{url}>\n/// see {url}"), vec![1, 3]),
        (format!("// \"\n{long}"), vec![2]),
        ("é".repeat(WIDTH), vec![]),
        ("é".repeat(WIDTH + 1), vec![1]),
    ] {
        assert_eq!(wide(&text), expected, "{text}");
    }
}

#[test]
fn only_a_literal_of_sql_may_be_wider() {
    let long = "long ".repeat(30);
    for (text, expected) in [
        (format!("select {long}"), vec![1]),
        (format!("-- don't\nselect {long}"), vec![2]),
        (format!("-- {long}"), vec![1]),
        (format!("select 'it''s {long}'"), vec![1]),
        (format!("select\n    'it''s {long}';"), vec![]),
        (format!("'a\n{long}\nb' {long}"), vec![3]),
    ] {
        assert_eq!(wide_sql(&text), expected, "{text}");
    }
}

/// Numbers of the lines of SQL that are too wide: all but those that hold nothing but a string literal.
fn wide_sql(text: &str) -> Vec<usize> {
    let mut wide = Vec::new();
    let mut in_literal = false;
    for (line, number) in text.lines().zip(1..) {
        let mut code = String::new();
        let mut rest = line.chars().peekable();
        while let Some(next) = rest.next() {
            match next {
                '\'' => in_literal = !in_literal,
                '-' if !in_literal && rest.peek() == Some(&'-') => {
                    code.extend(rest);
                    break;
                }
                _ if in_literal => {}
                _ => code.push(next),
            }
        }
        if line.chars().count() > SQL_WIDTH && code.contains(char::is_alphanumeric) {
            wide.push(number);
        }
    }
    wide
}

/// Numbers of the lines that are too wide: all but those that hold nothing but a string literal or a comment
/// of one word.
fn wide(text: &str) -> Vec<usize> {
    let code = without_strings(text);
    let lines = text.lines().zip(code.lines()).enumerate();
    lines
        .filter(|(_, (line, code))| line.chars().count() > WIDTH && !is_unbreakable(code))
        .map(|(index, _)| index + 1)
        .collect()
}

fn is_unbreakable(code: &str) -> bool {
    match code.trim_start().strip_prefix("//") {
        Some(comment) => !comment.trim_start_matches(['/', '!']).trim().contains(' '),
        None => !code.contains(char::is_alphanumeric),
    }
}

/// The text without the content of string and character literals, and with the same number of lines.
fn without_strings(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match literal(rest) {
            Some(end) => {
                code.extend(rest[..end].matches('\n'));
                end
            }
            None => {
                let end = if rest.starts_with("//") {
                    rest.find('\n').unwrap_or(rest.len())
                } else {
                    first.len_utf8()
                };
                code.push_str(&rest[..end]);
                end
            }
        };
        rest = &rest[end..];
    }
    code
}

/// Length in bytes of the literal at the start of the text, if there is one.
fn literal(text: &str) -> Option<usize> {
    if let Some(character) = text.strip_prefix('\'') {
        let content = character.chars().next()?.len_utf8();
        let content = if character.starts_with('\\') { 2 } else { content };
        return character.get(content..)?.starts_with('\'').then_some(content + 2);
    }
    let quote = text.find(|next| !matches!(next, 'b' | 'c' | 'r' | '#'))?;
    let content = text[quote..].strip_prefix('"')?;
    let prefix = &text[..quote];
    if prefix.contains('r') {
        let end = format!("\"{}", prefix.trim_start_matches(['b', 'c', 'r']));
        return Some(quote + 1 + content.find(&end)? + end.len());
    }
    let mut is_escaped = false;
    let end = content.find(|next| {
        let ends = next == '"' && !is_escaped;
        is_escaped = next == '\\' && !is_escaped;
        ends
    })?;
    Some(quote + 1 + end + 1)
}
