//! Checks that every test that `evidence.md` names exists. Tier: quick.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Folders with tests of the rings and of the devices on them.
const FOLDERS: [&str; 4] = ["virtio/src", "virtio/tests", "devices/src", "tests/tests"];

/// Adds the names of all test functions in the files below `folder` to `found`.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(tests_in(&text).map(str::to_owned));
        }
    }
}

/// Returns the names of the functions behind `#[test]`, whatever other attributes they have.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once("fn ")?;
        Some(rest.split_once('(')?.0)
    })
}

/// Returns the words between backticks in the last column of the tables.
fn named(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn the_tests_named_as_evidence_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut there = BTreeSet::new();
    for folder in FOLDERS {
        tests(&root.join(folder), &mut there);
    }
    let text = fs::read_to_string(root.join("virtio/tests/evidence.md")).unwrap();
    let named = named(&text);
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !there.contains(**name))
        .collect();
    assert!(missing.is_empty(), "no test is called {missing:#?}");
}
