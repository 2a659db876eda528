//! The rooms of `src` use each other in one direction, computed from the paths in the code.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{code, files};

/// The rooms in the order of `src/lib.rs`.
fn order() -> Vec<String> {
    let lib = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    lib.lines().filter_map(|line| Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())).collect()
}

/// The first words of every path that begins with `crate::` in a text.
fn used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let path = &text[at + "crate::".len()..];
        let Some(group) = path.strip_prefix('{') else {
            used.insert(first_word(path));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if letter.is_whitespace() => {}
                _ => {
                    if std::mem::take(&mut begins) && depth == 0 {
                        used.insert(first_word(&group[at..]));
                    }
                }
            }
        }
    }
    used
}

fn first_word(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

/// Each room, the rooms it uses, and the first file that does.
fn graph() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut graph: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (name, text) in files("src", ".rs") {
        let Some((room, _)) = name.trim_start_matches("src/").split_once('/') else { continue };
        let uses = graph.entry(room.to_owned()).or_default();
        if name.ends_with("/tests.rs") {
            continue;
        }
        for used in used(&code(&text)).into_iter().filter(|used| used != room) {
            uses.entry(used).or_insert_with(|| name.clone());
        }
    }
    graph
}

#[test]
fn use_runs_in_one_direction() {
    let (order, graph) = (order(), graph());
    assert_eq!(order.iter().collect::<BTreeSet<_>>(), graph.keys().collect(), "src/lib.rs lists every room");
    for (room, uses) in &graph {
        let own = order.iter().position(|one| one == room).unwrap();
        for (used, file) in uses {
            let Some(at) = order.iter().position(|one| one == used) else {
                panic!("{file} uses crate::{used}, which is not a room: write the room it is in");
            };
            assert!(at < own, "{file}: {room} uses {used}, which stands below it in src/lib.rs");
        }
    }
}

#[test]
fn the_reader_of_paths_sees_groups_and_single_paths() {
    let text = "use crate::{\n    event::{Event, topic::{Pattern, \
                Trie}},\n    store,\n};\nfn f(a: crate::sink::Sink) {}";
    assert_eq!(used(text), ["event", "sink", "store"].map(str::to_owned).into());
}

#[test]
fn a_module_has_one_form_a_file_or_a_folder_with_mod_rs() {
    for name in files("src", ".rs").into_keys() {
        let folder = name.trim_end_matches(".rs");
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        assert!(!path.is_dir(), "{name} exists beside the folder {folder}/; move it to {folder}/mod.rs");
    }
}

#[test]
fn the_top_of_src_is_short() {
    let top: BTreeSet<_> = files("src", ".rs")
        .into_keys()
        .map(|name| name.trim_start_matches("src/").split('/').next().unwrap().to_owned())
        .collect();
    assert!(top.len() <= 14, "the top of src has {}: {top:?}", top.len());
}

/// A change of this list changes the library's interface and belongs into CHANGELOG.md.
#[test]
fn the_public_names_are_those_of_the_committed_list() {
    let lib = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let mut names = BTreeSet::new();
    for statement in lib.split("\npub use ").skip(1) {
        let (statement, _) = statement.split_once(';').unwrap();
        leaves(statement, &mut names);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/public-names.txt");
    let made = names.into_iter().map(|name| format!("{name}\n")).collect::<String>();
    if std::env::var_os("UPDATE_TABLES").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        kept, made,
        "tests/public-names.txt should equal src/lib.rs: UPDATE_TABLES=1 cargo test --test it rooms"
    );
}

/// The names that a `use` statement brings.
fn leaves(tree: &str, names: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some((_, group)) = tree.split_once("::{").filter(|(head, _)| !head.contains(['{', ','])) else {
        let name = tree.rsplit(" as ").next().unwrap().rsplit("::").next().unwrap().trim();
        names.extend((!name.is_empty()).then(|| name.to_owned()));
        return;
    };
    let group = group.strip_suffix('}').unwrap();
    let (mut depth, mut begin) = (0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                leaves(&group[begin..at], names);
                begin = at + 1;
            }
            _ => {}
        }
    }
    leaves(&group[begin..], names);
}
