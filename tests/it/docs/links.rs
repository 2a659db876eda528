//! The target of every link in the documents exists, and the book's two lists of pages are equal.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Component, Path, PathBuf},
};

use regex::Regex;

use super::{Page, book, documents, root};

/// Text and target of each link, in order.
fn links(page: &Page) -> Vec<(String, String)> {
    let link = Regex::new(r"\[([^\]]+)\]\(([^)\s]+)\)").unwrap();
    // Backticks in a link's text are kept; other code spans could look like links and are removed.
    let span = Regex::new("`[^`]*`").unwrap();
    let prose = page.prose();
    let prose =
        span.replace_all(&prose, |found: &regex::Captures<'_>| found[0].replace(['(', ')', '[', ']'], " "));
    link.captures_iter(&prose).map(|found| (found[1].to_owned(), found[2].to_owned())).collect()
}

/// Anchors of the headings of a page, as GitHub generates them.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut anchors = BTreeSet::new();
    for line in page.prose().lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = seen.entry(slug.clone()).or_default();
        anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

/// A path without `..`, or none if it is outside the repository.
fn resolved(folder: &Path, target: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in folder.join(target).components() {
        match part {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    let pages = documents();
    let mut seen = 0;
    for page in &pages {
        for (_, link) in links(page).into_iter().filter(|(_, link)| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&page.name).parent().unwrap();
            let target =
                if file.is_empty() { Some(PathBuf::from(&page.name)) } else { resolved(folder, file) };
            let Some(target) = target.filter(|target| root().join(target).exists()) else {
                panic!("{}: the target of the link {link:?} does not exist", page.name)
            };
            if !anchor.is_empty() {
                let other = pages.iter().find(|other| Path::new(&other.name) == target);
                let other =
                    other.unwrap_or_else(|| panic!("{}: {link:?} names a heading of no page", page.name));
                assert!(
                    anchors(other).contains(anchor),
                    "{}: {} has no heading #{anchor}",
                    page.name,
                    other.name
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} links");
}

#[test]
fn the_index_and_the_summary_list_the_same_pages_and_all_of_them() {
    let mut pages = book();
    let (index, summary) = (pages.remove("README.md").unwrap(), pages.remove("SUMMARY.md").unwrap());
    let inside = |link: &(String, String)| !link.1.starts_with("..") && link.1 != "README.md";
    let listed: Vec<_> = links(&index).into_iter().filter(inside).collect();
    let summed: Vec<_> = links(&summary).into_iter().filter(inside).collect();
    assert_eq!(listed, summed, "docs/README.md and docs/SUMMARY.md");
    let headings = |page: &Page| -> Vec<String> {
        page.prose()
            .lines()
            .filter(|line| line.starts_with('#'))
            .skip(1)
            .map(|line| line.replace('#', ""))
            .collect()
    };
    assert_eq!(headings(&index), headings(&summary), "the parts of docs/README.md and docs/SUMMARY.md");
    let named: BTreeSet<_> = listed.iter().map(|(_, link)| link.clone()).collect();
    assert_eq!(named.len(), listed.len(), "a page is listed once");
    assert_eq!(named, pages.into_keys().collect(), "the pages of docs/");
}

#[test]
fn items_of_a_list_begin_on_lines_of_their_own() {
    for page in documents() {
        for (number, line) in page.prose().lines().enumerate() {
            let is_split = line.starts_with('|') || !line.contains(". * ");
            assert!(is_split, "{}, line {}: {line}", page.name, number + 1);
        }
    }
}
