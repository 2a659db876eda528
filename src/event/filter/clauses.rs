//! The parts of a conjunction as text, for people to read. Pure.

/// The parts of a conjunction as they are written. Only a label: what is evaluated are the parser's.
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

/// Without a pair of parentheses around all of it.
fn without_parentheses(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return text };
    let mut encloses = true;
    scan(text, |at, depth, _| {
        encloses &= depth > 0 || at == 0 || at + 1 == text.len();
        encloses
    });
    if encloses { without_parentheses(inner.trim()) } else { text }
}

/// Goes through what is neither literal nor comment: place, how many brackets are open, what follows. False ends it.
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
