//! The code's terms: those of the glossary in `CONTRIBUTING.md`, and no invented ones. A type name
//! stands for one type of its crate.
//!
//! Tier: quick.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::Item;

/// Invented terms, and the standard ones. An identifier must not have them among its words.
const INVENTED: &[(&str, &str)] = &[
    ("aside", "offload, or blocking thread"),
    ("bay", "slot"),
    ("books", "accounting"),
    ("crew", "workers"),
    ("debt", "deferred interrupt"),
    ("debts", "deferred interrupts"),
    ("habit", "adaptive switch"),
    ("hush", "disable_notifications"),
    ("mail", "message, or task management request"),
    ("manner", "flags, or mode"),
    ("owe", "pending, or deferred"),
    ("owed", "pending, or deferred"),
    ("owes", "pending, or deferred"),
    ("precedence", "scheduling policy"),
    ("way", "path, mode, or handle"),
    ("ways", "paths, modes, or handles"),
];

/// Folders and files that still have invented terms.
const PENDING: &[&str] = &["devices"];

/// The folders with source code.
const FOLDERS: [&str; 7] = [
    "arch",
    "bootdisk",
    "devices",
    "resources",
    "tests",
    "virtio",
    "vmm",
];

/// Identifiers with more words than this are sentences, as names of tests are.
const MOST_WORDS: usize = 4;

/// The sources of the crates whose type names are unique.
const UNIQUE_TYPES: [&str; 4] = ["virtio/src", "vmm/src", "vmm/cli/src", "arch/src"];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// Adds the Rust files below `path` to `found`, relative to the workspace.
fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        if path.file_name().is_some_and(|name| name == "target") {
            return;
        }
        for entry in fs::read_dir(path).expect("a folder") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let file = path.strip_prefix(workspace()).expect("in the workspace");
        found.push(file.to_owned());
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(workspace().join(file)).expect("a source file")
}

/// Calls `found` for every identifier in `tokens`.
fn identifiers(tokens: TokenStream, found: &mut impl FnMut(String)) {
    for token in tokens {
        match token {
            TokenTree::Ident(name) => found(name.to_string()),
            TokenTree::Group(group) => identifiers(group.stream(), found),
            _ => {}
        }
    }
}

/// Returns the words of an identifier, in lower case.
fn words(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for character in identifier.chars() {
        if character == '_' || (character.is_uppercase() && after_lower) {
            words.push(String::new());
        }
        after_lower = character.is_lowercase();
        if let Some(word) = words.last_mut()
            && character != '_'
        {
            word.extend(character.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Returns the first line, from 1 on, on which `identifier` is more than a part of a comment.
fn line_of(text: &str, identifier: &str) -> usize {
    let here = |line: &str| {
        let part = |character: char| character.is_alphanumeric() || character == '_';
        !line.trim_start().starts_with("//") && line.split(|c| !part(c)).any(|it| it == identifier)
    };
    text.lines().position(here).map_or(0, |line| line + 1)
}

/// Returns the findings in one file, as `file:line: …`.
fn invented(file: &Path, text: &str) -> Vec<String> {
    let mut found = BTreeMap::new();
    let tokens: TokenStream = text.parse().expect("Rust");
    identifiers(tokens, &mut |identifier| {
        let words = words(&identifier);
        let mut terms = INVENTED.iter();
        if words.len() <= MOST_WORDS
            && let Some((_, instead)) = terms.find(|(term, _)| words.iter().any(|it| it == term))
        {
            found.insert(identifier, *instead);
        }
    });
    let shown = found.iter().map(|(identifier, instead)| {
        let line = line_of(text, identifier);
        format!("{}:{line}: `{identifier}`; say {instead}", file.display())
    });
    shown.collect()
}

#[test]
fn identifiers_have_no_invented_terms() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        sources(&workspace().join(folder), &mut files);
    }
    for pending in PENDING {
        assert!(workspace().join(pending).exists(), "{pending} is gone");
    }
    files.retain(|file| !PENDING.iter().any(|pending| file.starts_with(pending)));
    assert!(files.len() > 100, "only {} files", files.len());
    let found: Vec<_> = files
        .iter()
        .flat_map(|file| invented(file, &read(file)))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_invented_term_is_found_in_any_kind_of_identifier_and_only_there() {
    let text = "// no way\nconst AN_ASIDE: &str = \"bay\";\nstruct HabitOf;\nfn hush() {}\nfn no_way_around_a_sentence() {}\nlet away = maybe;\n";
    let found = invented(Path::new("a.rs"), text);
    assert_eq!(found.len(), 3, "{found:#?}");
    for start in ["a.rs:2: `AN_ASIDE`", "a.rs:3: `HabitOf`", "a.rs:4: `hush`"] {
        assert!(found.iter().any(|it| it.starts_with(start)), "{found:#?}");
    }
}

/// Adds the types that `items` define, with their file, except former names and those that only
/// tests see. The specification's wire structures, which have the same names for each device, are
/// in a macro.
fn types(items: &[Item], file: &Path, found: &mut BTreeMap<String, Vec<PathBuf>>) {
    for item in items {
        let (name, attributes) = match item {
            Item::Struct(it) => (&it.ident, &it.attrs),
            Item::Enum(it) => (&it.ident, &it.attrs),
            Item::Trait(it) => (&it.ident, &it.attrs),
            Item::Type(it) => (&it.ident, &it.attrs),
            Item::Mod(it) => {
                let test = it.attrs.iter().any(|it| it.path().is_ident("cfg"));
                if let Some((_, items)) = it.content.as_ref().filter(|_| !test) {
                    types(items, file, found);
                }
                continue;
            }
            _ => continue,
        };
        let former = |it: &syn::Attribute| it.path().is_ident("deprecated");
        if !attributes.iter().any(former) {
            found
                .entry(name.to_string())
                .or_default()
                .push(file.to_owned());
        }
    }
}

#[test]
fn a_type_name_stands_for_one_type_of_its_crate() {
    for root in UNIQUE_TYPES {
        let mut files = Vec::new();
        sources(&workspace().join(root), &mut files);
        files.retain(|file| {
            let test = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs";
            !file.iter().any(test)
        });
        assert!(files.len() > 5, "{root}");
        let mut found = BTreeMap::new();
        for file in &files {
            let parsed = syn::parse_file(&read(file)).expect("Rust");
            types(&parsed.items, file, &mut found);
        }
        let shown: Vec<_> = found
            .iter()
            .filter(|(_, files)| files.len() > 1)
            .flat_map(|(name, files)| {
                let line = |file: &PathBuf| line_of(&read(file), name);
                files
                    .iter()
                    .map(move |file| format!("{}:{}: `{name}`", file.display(), line(file)))
            })
            .collect();
        assert!(shown.is_empty(), "{}", shown.join("\n"));
    }
}
