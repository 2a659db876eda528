//! Compares links, commands, names, tables and examples in README, the book in docs/ and the other documents
//! with the program.

mod commands;
mod examples;
mod links;
mod names;
mod reader;
pub(crate) mod tables;
mod walks;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A Markdown file.
#[derive(Debug)]
pub(crate) struct Page {
    /// Path in the repository.
    name: String,
    text: String,
}

/// A fenced code block.
#[derive(Debug)]
struct Block {
    language: String,
    text: String,
    /// Number of its first line, from 1.
    line: usize,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Page {
    pub(crate) fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), text }
    }

    fn blocks(&self) -> Vec<Block> {
        self.split().0
    }

    /// The text outside of fenced blocks; each line keeps its number.
    pub(crate) fn prose(&self) -> String {
        self.split().1
    }

    fn split(&self) -> (Vec<Block>, String) {
        let (mut blocks, mut prose) = (Vec::new(), String::new());
        let mut open: Option<(Block, usize)> = None;
        for (number, line) in self.text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (Some(_), Some("")) => blocks.extend(open.take().map(|(block, _)| block)),
                (None, Some(language)) => {
                    let is_word = !language.contains(' ');
                    assert!(is_word, "{}, line {}: a fence stands with text", self.name, number + 1);
                    let block =
                        Block { language: language.to_owned(), text: String::new(), line: number + 2 };
                    open = Some((block, indent));
                }
                (Some((block, indent)), _) => {
                    block.text.push_str(line.get(*indent..).unwrap_or(""));
                    block.text.push('\n');
                }
                (None, None) => prose.push_str(line),
            }
            prose.push('\n');
        }
        assert!(open.is_none(), "{}: the last fenced block is not closed", self.name);
        (blocks, prose)
    }

    /// Code spans outside of fenced blocks, with their line numbers.
    fn spans(&self) -> Vec<(usize, String)> {
        let prose = self.prose();
        let parts: Vec<&str> = prose.split('`').collect();
        assert!(parts.len() % 2 == 1, "{}: a backtick has no partner", self.name);
        let mut line = 1;
        let mut spans = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            if number % 2 == 1 {
                spans.push((line, part.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
            line += part.matches('\n').count();
        }
        spans
    }

    /// The text below a heading, up to the next heading of the same level.
    pub(crate) fn section(&self, heading: &str) -> Self {
        let level = heading.split(' ').next().unwrap_or_default();
        let begin = self
            .text
            .find(&format!("{heading}\n"))
            .unwrap_or_else(|| panic!("{}: no {heading:?}", self.name));
        let rest = &self.text[begin + heading.len()..];
        let end = rest.find(&format!("\n{level} ")).unwrap_or(rest.len());
        Self { name: format!("{}, {heading:?}", self.name), text: rest[..end].to_owned() }
    }
}

/// All pages of the book, including the index and the summary, by their paths below docs/.
fn book() -> BTreeMap<String, Page> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = relative(&path);
            assert!(name.ends_with(".md"), "{name} is no page");
            pages.insert(name.trim_start_matches("docs/").to_owned(), Page::read(&name));
        }
    }
    pages
}

/// The book and the documents in the top folder.
fn documents() -> Vec<Page> {
    let top = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"];
    top.into_iter().map(Page::read).chain(book().into_values()).collect()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

/// Output of the binary for a command that needs no database and must succeed.
fn pgoutbox(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(arguments)
        .env_clear()
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "pgoutbox {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// First code span of each row of the first table whose first column has code spans.
fn first_table(text: &str) -> Vec<String> {
    let rows =
        text.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    rows.filter_map(|line| line.split('`').nth(1)).map(str::to_owned).collect()
}
