//! Every command of the documents exists: subcommands and options of the binary, targets of the Makefile.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    rc::Rc,
};

use super::{documents, pgoutbox, root};

/// The help text of a command.
#[derive(Debug, Default)]
pub(super) struct Help {
    /// First paragraph of the help.
    pub(super) about: String,
    /// Arguments and required options, from the usage line.
    pub(super) usage: String,
    /// Names of subcommands, in order.
    pub(super) commands: Vec<String>,
    /// Long and short options.
    pub(super) options: Vec<String>,
}

impl Help {
    /// Whether the command does something without a subcommand.
    pub(super) fn runs_alone(&self) -> bool {
        !self.usage.contains("<COMMAND>")
    }
}

/// Help texts of the binary, each requested once.
#[derive(Debug, Default)]
pub(super) struct Binary(RefCell<BTreeMap<Vec<String>, Rc<Help>>>);

impl Binary {
    pub(super) fn help(&self, path: &[String]) -> Rc<Help> {
        if let Some(known) = self.0.borrow().get(path) {
            return known.clone();
        }
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = Rc::new(Help::read(&pgoutbox(&arguments), path));
        self.0.borrow_mut().insert(path.to_vec(), help.clone());
        help
    }
}

impl Help {
    fn read(text: &str, path: &[String]) -> Self {
        let mut help = Self::default();
        let (about, rest) = text.split_once("\n\nUsage: ").unwrap_or_else(|| panic!("{path:?}: {text}"));
        help.about = about.split_whitespace().collect::<Vec<_>>().join(" ");
        let usage = rest.lines().next().unwrap_or_default();
        let words = usage.split_whitespace().skip(1 + path.len()).filter(|word| *word != "[OPTIONS]");
        help.usage = words.collect::<Vec<_>>().join(" ");
        let mut section = "";
        for line in rest.lines().skip(1) {
            if !line.starts_with(' ') && line.ends_with(':') {
                section = line;
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match (section, words.first()) {
                ("Commands:", Some(word))
                    if line.starts_with("  ") && !line.starts_with("   ") && *word != "help" =>
                {
                    help.commands.push((*word).to_owned());
                }
                ("Options:", Some(word))
                    if word.starts_with('-') && *word != "-" && !line.starts_with("          ") =>
                {
                    let names = words.iter().take(2).filter(|word| word.starts_with('-'));
                    help.options.extend(names.map(|word| word.trim_end_matches(',').to_owned()));
                }
                _ => {}
            }
        }
        help
    }
}

/// The arguments of each command in shell code, without comments and here-documents. A quoted argument begins
/// with `'`.
fn commands(text: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), String::new());
    let mut document: Option<String> = None;
    for line in text.lines() {
        if let Some(end) = &document {
            if line.trim() == end {
                document = None;
            }
            continue;
        }
        let mut quote = None;
        let continued = line.ends_with('\\');
        let mut rest = line.trim_end_matches('\\').chars().peekable();
        while let Some(c) = rest.next() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), c) => word.push(c),
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.push_str(if word.is_empty() { "'" } else { "" });
                }
                (None, '#') if word.is_empty() => break,
                (None, '<') if rest.peek() == Some(&'<') => {
                    document =
                        Some(line.rsplit("<<").next().unwrap_or_default().trim_matches('\'').to_owned());
                    break;
                }
                (None, '|' | '&' | ';' | '(' | ')') => {
                    words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                    commands.push(std::mem::take(&mut words));
                }
                (None, c) if c.is_whitespace() => {
                    words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)))
                }
                (None, c) => word.push(c),
            }
        }
        words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        if !continued {
            commands.push(std::mem::take(&mut words));
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

/// The mistake in the arguments of `pgoutbox`, if there is one.
fn problem(binary: &Binary, words: &[String], whole: bool) -> Option<String> {
    let mut path = Vec::new();
    let mut help = binary.help(&path);
    let mut words = words.iter().peekable();
    while let Some(word) = words.next_if(|word| !word.starts_with('-')) {
        if help.commands.is_empty() {
            break;
        }
        if !help.commands.contains(word) {
            return Some(format!("pgoutbox {} has no subcommand {word}", path.join(" ")));
        }
        path.push(word.clone());
        help = binary.help(&path);
    }
    if whole && !help.runs_alone() && !path.is_empty() {
        return Some(format!("pgoutbox {} needs a subcommand", path.join(" ")));
    }
    let unknown = words.filter(|word| word.starts_with('-') && word.len() > 1);
    let mut unknown = unknown
        .map(|word| word.split('=').next().unwrap_or_default())
        .filter(|name| !help.options.iter().any(|one| one == name));
    unknown.next().map(|name| format!("pgoutbox {} has no option {name}", path.join(" ")))
}

/// The arguments after the program's name, which may be anywhere in a command.
fn behind<'a>(words: &'a [String], program: &str) -> Option<&'a [String]> {
    let place = words.iter().position(|word| word == program || word.ends_with(&format!("/{program}")))?;
    words.get(place + 1..)
}

/// A command from a synopsis such as `[--json]` or `reject|warn`, without brackets and alternatives.
fn without_brackets(text: &str) -> String {
    text.replace(['[', ']'], " ").replace('|', "/")
}

#[test]
fn every_command_names_subcommands_and_options_that_the_binary_has() {
    let binary = Binary::default();
    let mut seen = 0;
    for page in documents() {
        let blocks = page
            .blocks()
            .into_iter()
            .filter(|block| ["sh", "text", "ini"].contains(&block.language.as_str()));
        let texts = blocks
            .map(|block| {
                (
                    block.line,
                    if block.language == "text" { without_brackets(&block.text) } else { block.text },
                    true,
                )
            })
            .chain(page.spans().into_iter().map(|(line, span)| (line, without_brackets(&span), false)));
        for (line, text, whole) in texts {
            for words in commands(&text).iter().filter_map(|words| behind(words, "pgoutbox")) {
                // Text may name a group of commands without a subcommand.
                if let Some(problem) = problem(&binary, words, whole) {
                    panic!("{}, line {line}: {problem}", page.name);
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen} commands");
}

#[test]
fn every_target_of_make_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-'))
        .map(|(name, _)| name)
        .collect();
    let mut seen = 0;
    for page in documents() {
        let blocks = page
            .blocks()
            .into_iter()
            .filter(|block| block.language == "sh")
            .map(|block| (block.line, block.text));
        for (line, text) in blocks.chain(page.spans()) {
            for words in
                commands(&text).iter().filter(|words| words.first().is_some_and(|word| word == "make"))
            {
                for target in words.iter().skip(1).filter(|word| !word.contains('=')) {
                    assert!(
                        targets.contains(target.as_str()),
                        "{}, line {line}: there is no make {target}",
                        page.name
                    );
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 5, "{seen} targets");
}
