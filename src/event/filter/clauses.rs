//! Splits the text of a filter at its top-level `&&`, to show the parts to people. Pure.

/// The parts of `a && b && c` as text. They are labels only; the parser's parts are what is evaluated.
pub(super) fn conjunction(text: &str) -> Vec<String> {
    let text = without_parentheses(text.trim());
    let mut parts = Vec::new();
    let mut start = 0;
    let mut loose = false;
    scan(text, |at, depth, rest| {
        if depth == 0 && at >= start && rest.starts_with("&&") {
            parts.push(&text[start..at]);
            start = at + 2;
        }
        loose |= depth == 0 && (rest.starts_with("||") || rest.starts_with('?'));
        true
    });
    parts.push(&text[start..]);
    if loose || parts.len() == 1 {
        return vec![text.trim().to_owned()];
    }
    parts.into_iter().flat_map(conjunction).collect()
}

/// The text without parentheses that enclose all of it.
fn without_parentheses(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return text };
    let mut encloses = true;
    scan(text, |at, depth, _| {
        encloses &= depth > 0 || at == 0 || at + 1 == text.len();
        encloses
    });
    if encloses { without_parentheses(inner.trim()) } else { text }
}

/// Calls `see(offset, open brackets, rest)` for each character outside literals and comments, until it
/// returns false.
fn scan(text: &str, mut see: impl FnMut(usize, usize, &str) -> bool) {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        match first {
            '"' | '\'' => {
                let raw = text[..at].ends_with(['r', 'R']);
                let triple: String = std::iter::repeat_n(first, 3).collect();
                let quote = if rest.starts_with(&triple) { triple.as_str() } else { &triple[..1] };
                at += quote.len();
                while let Some(next) = text[at..].chars().next() {
                    if text[at..].starts_with(quote) {
                        at += quote.len();
                        break;
                    }
                    at += next.len_utf8();
                    if next == '\\' && !raw {
                        at += text[at..].chars().next().map_or(0, char::len_utf8);
                    }
                }
                continue;
            }
            '/' if rest.starts_with("//") => {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !see(at, depth, rest) {
            return;
        }
        at += first.len_utf8();
    }
}
