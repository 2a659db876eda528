//! Topic patterns, and a trie that finds the patterns a topic matches. Pure.
//!
//! A topic is segments separated by dots. In a pattern `*` is one segment, `**` any number of segments (also
//! none), and a segment ending in `*` matches by prefix. Topics that begin with `outbox.` are those of
//! operators' events: only patterns that begin so match them. The cost grows with the segments of the topic,
//! not with the number of patterns.

use std::collections::HashMap;

/// First segment of the topics of operators' events.
const OURS: &str = "outbox";
/// Beginning of the topics that no application can publish.
pub const RESERVED: &str = "outbox.";

/// A checked topic pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Exact(Box<str>),
    Prefix(Box<str>),
    One,
    Many,
}

/// Why a text is not a topic pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a topic pattern: {why}")]
pub struct InvalidPattern {
    text: String,
    why: &'static str,
}

impl Pattern {
    /// Parses a pattern by the same rule as `outbox_internal.topic_pattern_is_valid`.
    ///
    /// # Errors
    /// When it is empty or longer than 255 characters, has an empty segment, a blank or a control character,
    /// or a star elsewhere than at the end of a segment.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| InvalidPattern { text: text.chars().take(255).collect(), why };
        let length = text.chars().count();
        if length == 0 || length > 255 {
            return Err(invalid("it must have 1 to 255 characters"));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid("it has a control character"));
        }
        if text.contains(' ') {
            return Err(invalid("it has a blank"));
        }
        let segments = text
            .split('.')
            .map(|segment| match segment {
                "" => Err(invalid("it has an empty segment")),
                "**" => Ok(Segment::Many),
                "*" => Ok(Segment::One),
                _ => match segment.strip_suffix('*') {
                    Some(prefix) if !prefix.contains('*') => Ok(Segment::Prefix(prefix.into())),
                    None if !segment.contains('*') => Ok(Segment::Exact(segment.into())),
                    _ => Err(invalid(
                        "* must be the last character of its segment; ** must be a whole segment",
                    )),
                },
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { segments })
    }

    /// Whether a topic matches this pattern. For many patterns use [`Trie`].
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let mut trie = Trie::default();
        trie.insert(self, ());
        trie.find(topic).next().is_some()
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            match segment {
                Segment::Exact(text) => f.write_str(text)?,
                Segment::Prefix(text) => write!(f, "{text}*")?,
                Segment::One => f.write_str("*")?,
                Segment::Many => f.write_str("**")?,
            }
        }
        Ok(())
    }
}

/// Finds the patterns that a topic matches; each has a value.
#[derive(Debug)]
pub struct Trie<V> {
    nodes: Vec<Node<V>>,
}

#[derive(Debug)]
struct Node<V> {
    exact: HashMap<Box<str>, usize>,
    prefixes: Vec<(Box<str>, usize)>,
    one: Option<usize>,
    many: Option<usize>,
    /// Reached by `**`: any number of further segments may be skipped.
    repeats: bool,
    values: Vec<V>,
}

impl<V> Node<V> {
    fn new(repeats: bool) -> Self {
        Self {
            exact: HashMap::new(),
            prefixes: Vec::new(),
            one: None,
            many: None,
            repeats,
            values: Vec::new(),
        }
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { nodes: vec![Node::new(false)] }
    }
}

impl<V> Trie<V> {
    /// Adds a pattern.
    pub fn insert(&mut self, pattern: &Pattern, value: V) {
        let mut at = 0;
        for segment in &pattern.segments {
            at = self.child(at, segment);
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.values.push(value);
        }
    }

    fn child(&mut self, at: usize, segment: &Segment) -> usize {
        let next = self.nodes.len();
        let Some(node) = self.nodes.get_mut(at) else { return at };
        let (child, repeats) = match segment {
            Segment::Exact(text) => (*node.exact.entry(text.clone()).or_insert(next), false),
            Segment::Prefix(text) => match node.prefixes.iter().find(|(prefix, _)| prefix == text) {
                Some((_, child)) => (*child, false),
                None => {
                    node.prefixes.push((text.clone(), next));
                    (next, false)
                }
            },
            Segment::One => (*node.one.get_or_insert(next), false),
            Segment::Many => (*node.many.get_or_insert(next), true),
        };
        if child == next {
            self.nodes.push(Node::new(repeats));
        }
        child
    }

    /// The values of all matching patterns. A value inserted under several patterns may come several times.
    pub fn find<'a>(&'a self, topic: &str) -> impl Iterator<Item = &'a V> + use<'a, V> {
        let mut here = Vec::with_capacity(8);
        let mut there = Vec::with_capacity(8);
        let mut rest = topic;
        match topic.strip_prefix(RESERVED) {
            None => self.enter(0, &mut here),
            Some(after) => {
                rest = after;
                if let Some(&child) = self.nodes.first().and_then(|root| root.exact.get(OURS)) {
                    self.enter(child, &mut here);
                }
            }
        }
        for segment in rest.split('.') {
            for node in here.drain(..).filter_map(|at: usize| self.nodes.get(at).map(|node| (at, node))) {
                let (at, node) = node;
                if node.repeats {
                    self.enter(at, &mut there);
                }
                if let Some(&child) = node.exact.get(segment) {
                    self.enter(child, &mut there);
                }
                for (prefix, child) in &node.prefixes {
                    if segment.starts_with(&**prefix) {
                        self.enter(*child, &mut there);
                    }
                }
                if let Some(child) = node.one {
                    self.enter(child, &mut there);
                }
            }
            std::mem::swap(&mut here, &mut there);
            if here.is_empty() {
                break;
            }
        }
        here.into_iter().filter_map(|at| self.nodes.get(at)).flat_map(|node| node.values.iter())
    }

    /// Adds a node, and those reached from it by a `**` that matches no segment. Each node is added once, so
    /// that `**.**.**` does not multiply.
    fn enter(&self, at: usize, into: &mut Vec<usize>) {
        let mut next = Some(at);
        while let Some(at) = next {
            if into.contains(&at) {
                return;
            }
            into.push(at);
            next = self.nodes.get(at).and_then(|node| node.many);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, topic: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(topic)
    }

    #[test]
    fn stars_mean_what_the_manual_says() {
        for (pattern, topic, expected) in [
            ("public.orders.create", "public.orders.create", true),
            ("public.orders.create", "public.orders", false),
            ("public.*.create", "public.orders.create", true),
            ("public.*", "public.orders.create", false),
            ("public.*", "public", false),
            ("public.**", "public", true),
            ("public.**", "public.orders.create", true),
            ("**", "anything.at.all", true),
            ("**.create", "create", true),
            ("**.create", "public.orders.create", true),
            ("public.**.create", "public.create", true),
            ("public.**.create", "public.a.b.create", true),
            ("public.**.create", "public.a.b.update", false),
            ("public.ord*.create", "public.orders.create", true),
            ("public.ord*.create", "public.ord.create", true),
            ("public.ord*.create", "public.users.create", false),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "a*b", "*a", "***", "a.**b", "a.b**", "a\n"] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }

    /// The definition of a match, written as directly as possible.
    fn naive(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern.split_first(), topic.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), None) => naive(rest, topic),
            (Some((&"**", rest)), Some((_, tail))) => naive(rest, topic) || naive(pattern, tail),
            (Some((&"*", rest)), Some((_, tail))) => naive(rest, tail),
            (Some((segment, rest)), Some((first, tail))) => {
                let here =
                    segment.strip_suffix('*').map_or(segment == first, |prefix| first.starts_with(prefix));
                here && naive(rest, tail)
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof!["[ab]{1,2}", "[ab]{1,2}\\*", Just("*".to_owned()), Just("**".to_owned())],
            1..6,
        )
        .prop_map(|segments| segments.join("."))
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_the_definition(
            patterns in proptest::collection::vec(pattern(), 1..20),
            topic in proptest::collection::vec("[ab]{1,3}", 1..7),
        ) {
            let mut trie = Trie::default();
            for (index, text) in patterns.iter().enumerate() {
                trie.insert(&Pattern::parse(text).unwrap(), index);
            }
            let mut found: Vec<usize> = trie.find(&topic.join(".")).copied().collect();
            found.sort_unstable();
            let segments: Vec<&str> = topic.iter().map(String::as_str).collect();
            let expected: Vec<usize> = patterns.iter().enumerate()
                .filter(|(_, text)| naive(&text.split('.').collect::<Vec<_>>(), &segments))
                .map(|(index, _)| index).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_pattern_is_written_as_it_was_read(text in pattern()) {
            prop_assert_eq!(Pattern::parse(&text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_patterns_that_begin_with_outbox_match_the_topics_of_operators_events() {
        let matches = |pattern: &str, topic: &str| Pattern::parse(pattern).unwrap().matches(topic);
        for pattern in ["**", "*.**", "out*.**", "**.paused", "*.subscription.*", "**.**"] {
            assert!(!matches(pattern, "outbox.subscription.paused"), "{pattern}");
        }
        for pattern in ["outbox.**", "outbox.subscription.*", "outbox.**.paused", "outbox.*.paused"] {
            assert!(matches(pattern, "outbox.subscription.paused"), "{pattern}");
        }
        for topic in ["outbox", "outboxes.a", "shop.outbox.a"] {
            assert!(matches("**", topic), "{topic}");
        }
    }
}
