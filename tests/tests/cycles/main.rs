//! No circular imports between the files of a crate, so that a file's dependencies can be read
//! before the file. Contracts are therefore leaves, and nothing that children need is in the parent
//! that composes them.
//!
//! File A imports file B if a reader of A has to look something up in B:
//! - a `use` in A of an item that B defines, or a path or a macro call in A's code that leads to
//!   one;
//! - through a re-export, the file that defines the item is imported, not the one that re-exports
//!   it;
//! - a re-export (`pub use`, `pub(crate) use`) is not an import unless the file uses the name
//!   itself; neither is a `mod` declaration, nor a module's name at the beginning of a path;
//! - code that only tests see (`#[cfg(test)]`) is ignored.
//!
//! Existing tools have other rules. `cargo modules dependencies --acyclic` and `cargo cycles` count
//! a parent's `mod` declaration as a dependency on its child, so that every `use super::…` is a
//! cycle. The latter does not see paths outside of `use`, does not follow re-exports, and includes
//! tests; the former needs rust-analyzer's build of the crate.
//!
//! Tier: quick.

mod imports;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use imports::{Folder, Imports, Sources, imports};

/// The crates, by the folder of their sources and their root file.
const ROOTS: [(&str, &str); 6] = [
    ("virtio/src", "lib.rs"),
    ("devices/src", "lib.rs"),
    ("arch/src", "lib.rs"),
    ("bootdisk/src", "lib.rs"),
    ("vmm/src", "lib.rs"),
    ("vmm/cli/src", "main.rs"),
];

/// Returns the sets of two or more files that all import one another, directly or indirectly.
fn components(imports: &Imports) -> Vec<BTreeSet<&Path>> {
    let reach: BTreeMap<&Path, BTreeSet<&Path>> = imports
        .keys()
        .map(|file| (file.as_path(), reachable(imports, file)))
        .collect();
    let mut found: Vec<BTreeSet<&Path>> = Vec::new();
    for (file, reached) in &reach {
        if !reached.contains(file) || found.iter().any(|it| it.contains(file)) {
            continue;
        }
        let both = reached.iter().filter(|other| reach[*other].contains(file));
        found.push(both.copied().collect());
    }
    found
}

fn reachable<'a>(imports: &'a Imports, from: &Path) -> BTreeSet<&'a Path> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for next in imports[file].keys() {
            if found.insert(next.as_path()) {
                open.push(next);
            }
        }
    }
    found
}

/// Returns the shortest path from a file of the component back to itself.
fn shortest_cycle<'a>(imports: &'a Imports, component: &BTreeSet<&'a Path>) -> Vec<&'a Path> {
    let cycles = component.iter().filter_map(|start| {
        let mut paths = VecDeque::from([vec![*start]]);
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop_front() {
            for next in imports[*path.last()?].keys() {
                let mut path = path.clone();
                path.push(next);
                if next == start {
                    return Some(path);
                }
                if seen.insert(next) {
                    paths.push_back(path);
                }
            }
        }
        None
    });
    cycles.min_by_key(Vec::len).expect("a component has one")
}

/// Returns a description of a cycle, one import per line.
fn description(imports: &Imports, cycle: &[&Path]) -> String {
    let arrow = |pair: &[&Path]| {
        let names: Vec<&str> = imports[pair[0]][pair[1]]
            .iter()
            .map(String::as_str)
            .collect();
        let (from, to) = (pair[0].display(), pair[1].display());
        format!("  {from} imports {} from {to}\n", names.join(", "))
    };
    cycle.windows(2).map(arrow).collect()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
}

#[test]
fn no_file_imports_itself_through_others() {
    let mut failures = String::new();
    for (folder, root) in ROOTS {
        let imports = imports(&Folder(workspace().join(folder)), root);
        assert!(imports.len() > 1, "{folder} has more than one file");
        for component in components(&imports) {
            let cycle = shortest_cycle(&imports, &component);
            failures.push_str(&format!(
                "{folder}: {} files import one another: {component:?}\n{}",
                component.len(),
                description(&imports, &cycle)
            ));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The files of a crate that exists in a test only.
struct Texts(&'static [(&'static str, &'static str)]);

impl Sources for Texts {
    fn read(&self, path: &Path) -> Option<String> {
        let (_, text) = self.0.iter().find(|(name, _)| Path::new(name) == path)?;
        Some((*text).to_owned())
    }
}

/// Returns all imports between files, as "a -> b: names".
fn arrows(files: &'static [(&'static str, &'static str)]) -> Vec<String> {
    let mut arrows = Vec::new();
    for (from, imported) in imports(&Texts(files), "lib.rs") {
        for (to, names) in imported {
            let names: Vec<String> = names.into_iter().collect();
            arrows.push(format!(
                "{} -> {}: {}",
                from.display(),
                to.display(),
                names.join(" ")
            ));
        }
    }
    arrows
}

#[test]
fn an_import_through_a_re_export_is_of_the_file_that_defines_the_item() {
    let files = &[
        (
            "lib.rs",
            "mod a; mod b; mod deep; pub use a::A as Renamed; pub use deep::*;",
        ),
        ("a.rs", "pub struct A;"),
        (
            "b.rs",
            "use crate::{Renamed, Deep}; use super::deep::inner::{self, Deep as D};",
        ),
        ("deep/mod.rs", "pub mod inner; pub(crate) use inner::Deep;"),
        ("deep/inner.rs", "pub enum Deep {}"),
    ];
    assert_eq!(
        arrows(files),
        ["b.rs -> a.rs: A", "b.rs -> deep/inner.rs: Deep"]
    );
}

#[test]
fn a_parent_that_uses_what_it_re_exports_imports_it() {
    let files = &[
        (
            "lib.rs",
            "mod a; pub use a::{A, B}; fn f(b: u8) -> A { A::new(b.B) }",
        ),
        ("a.rs", "pub struct A; pub struct B;"),
    ];
    assert_eq!(arrows(files), ["lib.rs -> a.rs: A"]);
}

#[test]
fn paths_and_macros_in_code_are_imports() {
    let files = &[
        (
            "lib.rs",
            "macro_rules! shout { () => {} } mod a; mod b; mod c;",
        ),
        (
            "a.rs",
            "fn f() { shout!(); print!(\"{}\", super::b::B::default()); use crate::c::*; g() }",
        ),
        ("b.rs", "pub struct B;"),
        (
            "c.rs",
            "use super::b; pub fn g() -> b::B { self::h() } fn h() {}",
        ),
    ];
    assert_eq!(
        arrows(files),
        [
            "a.rs -> b.rs: B",
            "a.rs -> lib.rs: shout",
            "c.rs -> b.rs: B"
        ]
    );
}

#[test]
fn test_only_imports_do_not_count() {
    let files = &[
        (
            "lib.rs",
            "mod a; #[cfg(test)] mod tests; #[cfg(all(test, unix))] use a::A;",
        ),
        (
            "a.rs",
            "pub struct A; #[cfg(test)] mod tests { use crate::B; } #[cfg(not(test))] use crate::C;",
        ),
    ];
    assert_eq!(arrows(files), Vec::<String>::new());
    let imports = imports(&Texts(files), "lib.rs");
    assert_eq!(imports.len(), 2);
}

#[test]
fn the_shortest_cycle_is_reported() {
    let files = &[
        ("lib.rs", "mod a; mod b; mod c; mod leaf; use a::A;"),
        (
            "a.rs",
            "use crate::b::B; use crate::leaf::Leaf; pub struct A;",
        ),
        ("b.rs", "pub struct B(crate::c::C);"),
        ("c.rs", "use crate::{a::A, b::B}; pub struct C;"),
        ("leaf.rs", "pub struct Leaf;"),
    ];
    let imports = imports(&Texts(files), "lib.rs");
    let found = components(&imports);
    assert_eq!(found, [["a.rs", "b.rs", "c.rs"].map(Path::new).into()]);
    let cycle = shortest_cycle(&imports, &found[0]);
    assert_eq!(
        description(&imports, &cycle),
        "  b.rs imports C from c.rs\n  c.rs imports B from b.rs\n"
    );
}
