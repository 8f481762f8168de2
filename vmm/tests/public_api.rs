//! The public interface of the whole library, as text, compared with a snapshot: changes show in
//! the diff of `public_api.txt` (updated under `UPDATE_PUBLIC_API=1`). It also checks a rule: no
//! signature has a type for which a user would have to name another crate of this workspace, or a
//! crate that may be replaced.
//!
//! rustdoc lists the public items as JSON, in which a re-export is only a name; so each name that
//! leads to another crate of this workspace is followed there. JSON is an unstable output: only the
//! stable rustdoc is told to allow it, so that no dependency is rebuilt. Tier: quick.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const SNAPSHOT: &str = "tests/public_api.txt";

/// The crates behind the facade, by package.
const BEHIND: [&str; 2] = ["splitring-devices", "splitring-virtio"];

/// Crates that may occur in a signature: the standard library, and crates whose traits or types are
/// part of the contract. serde and bitflags are in traits that our types implement, zerocopy's
/// little-endian numbers are in `net::Header`.
const ALLOWED: [&str; 9] = [
    "splitring",
    "core",
    "alloc",
    "std",
    "serde",
    "serde_core",
    "bitflags",
    "zerocopy",
    "thiserror",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a rustdoc command that writes JSON.
fn rustdoc() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rustdoc-json");
    fs::write(&path, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

/// Returns the rustdoc JSON of `package`.
fn json(rustdoc: &Path, package: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target directory");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args([
            "rustdoc",
            "--quiet",
            "--lib",
            "--package",
            package,
            "--target-dir",
        ])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .args(["--cap-lints", "allow"])
        .env("RUSTDOC", rustdoc)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo rustdoc of {package}: {errors}"
    );
    target.join(format!("doc/{}.json", package.replace('-', "_")))
}

/// Returns the public items of a crate, one per line. Implementations by the compiler or by
/// `derive` are left out.
fn listed(json: &Path) -> Vec<String> {
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .expect("rustdoc's JSON can be read");
    api.items().map(ToString::to_string).collect()
}

/// Returns a crate's public names: the path under which each can be used, and the path at which it
/// is defined.
fn names(json: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(json).expect("JSON");
    let of: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    let root = &of["index"][of["root"].to_string()];
    let name = root["name"].as_str().expect("the crate's name");
    walk(&of, root, name, &mut found);
    found
}

fn walk(of: &Value, module: &Value, path: &str, found: &mut Vec<(String, String)>) {
    let items = module["inner"]["module"]["items"].as_array();
    for id in items.into_iter().flatten() {
        let item = &of["index"][id.to_string()];
        if item["visibility"] != "public" {
            continue;
        }
        let used = &item["inner"]["use"];
        let (name, id) = match used["name"].as_str() {
            Some(name) => (Some(name), &used["id"]),
            None => (item["name"].as_str(), id),
        };
        let path = format!("{path}::{}", name.expect("a name"));
        assert!(used["is_glob"] != true, "{path}: name what is exported");
        let defined = of["paths"][id.to_string()]["path"].as_array();
        let defined: Vec<_> = defined
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !defined.is_empty() {
            found.push((path.clone(), defined.join("::")));
        }
        let target = &of["index"][id.to_string()];
        if target["inner"]["module"].is_object() {
            walk(of, target, &path, found);
        }
    }
}

/// Replaces whole paths, the longest first.
fn renamed(line: &str, names: &BTreeMap<String, String>) -> String {
    let part = |it: char| it.is_alphanumeric() || it == '_' || it == ':';
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(part) {
        let end = rest[start..]
            .find(|it| !part(it))
            .map_or(rest.len(), |len| start + len);
        // `path: Type`.
        let end = start + rest[start..end].trim_end_matches(':').len();
        if end == start {
            out += &rest[..=start];
            rest = &rest[start + 1..];
            continue;
        }
        out += &rest[..start];
        let path = &rest[start..end];
        let mut cut = path.len();
        let known = loop {
            if let Some(new) = names.get(&path[..cut]) {
                break Some(new);
            }
            match path[..cut].rfind("::") {
                Some(shorter) => cut = shorter,
                None => break None,
            }
        };
        match known {
            Some(new) => out += &format!("{new}{}", &path[cut..]),
            None => out += path,
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Returns the subject of a line: the first path of ours in it, or the type of an implementation.
fn subject(line: &str) -> &str {
    let line = line.split_once(" for ").map_or(line, |(_, rest)| rest);
    let start = line.find("splitring").unwrap_or(line.len());
    let end = line[start..].find(|it: char| !it.is_alphanumeric() && it != '_' && it != ':');
    line[start..end.map_or(line.len(), |len| start + len)].trim_end_matches(':')
}

fn api() -> Vec<String> {
    let rustdoc = rustdoc();
    let facade = json(&rustdoc, "splitring");
    // The path at which each item is defined, and the shortest name under which users find it.
    let mut exported: BTreeMap<String, String> = BTreeMap::new();
    let mut keep = |defined: String, name: String| {
        let known = exported.entry(defined).or_insert_with(|| name.clone());
        if (name.matches("::").count(), name.len()) < (known.matches("::").count(), known.len()) {
            *known = name;
        }
    };
    for (name, defined) in names(&facade) {
        keep(defined, name);
    }
    let behind: Vec<_> = BEHIND
        .iter()
        .map(|package| json(&rustdoc, package))
        .collect();
    for json in &behind {
        let own: Vec<_> = names(json);
        for (public, defined) in own {
            if let Some(name) = exported.get(&defined).cloned() {
                exported.insert(public, name);
            }
        }
    }
    let mut lines: Vec<String> = listed(&facade);
    lines.retain(|line| !line.starts_with("pub use "));
    for json in &behind {
        lines.extend(listed(json));
    }
    let lines: Vec<String> = lines.iter().map(|line| renamed(line, &exported)).collect();
    ours(lines)
}

/// Returns those of `lines` whose subject is exported. Of an implementation of a trait the first
/// line is kept, unless the trait is not exported.
fn ours(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    // The type for which a trait is being implemented.
    let mut implementor: Option<String> = None;
    for line in lines {
        if line.starts_with("impl") {
            let implemented = line.split_once(" for ");
            implementor = implemented.map(|(_, rest)| {
                let name = rest.split([' ', '<']).next().unwrap_or_default();
                format!(" {name}")
            });
            if implemented.is_some_and(|(head, _)| is_private(head)) {
                continue;
            }
        } else if let Some(of) = &implementor {
            let member = line.split_once(of.as_str()).map(|(_, rest)| rest);
            if member.is_some_and(|rest| rest.starts_with("::") || rest.starts_with('<')) {
                continue;
            }
            implementor = None;
        }
        let exported = subject(&line).starts_with("splitring::") || subject(&line) == "splitring";
        if exported && !kept.contains(&line) {
            kept.push(line);
        }
    }
    kept
}

/// Returns whether a signature names a crate that a user should not need.
fn is_private(line: &str) -> bool {
    let part = |it: char| it.is_alphanumeric() || it == '_' || it == ':';
    line.split(|it| !part(it))
        .filter_map(|path| path.trim_start_matches(':').split_once("::"))
        .any(|(name, _)| {
            let is_crate = name.starts_with(|it: char| it.is_lowercase());
            is_crate && !ALLOWED.contains(&name)
        })
}

#[test]
fn the_public_interface_is_what_it_was_and_names_no_other_crate() {
    let lines = api();
    let private: Vec<_> = lines.iter().filter(|line| is_private(line)).collect();
    assert!(
        private.is_empty(),
        "a user would have to know a crate that is not exported: {private:#?}"
    );
    for name in [
        "config::DiskConfig",
        "disk::DiskQueue",
        "net::FramePort",
        "scsi::ScsiHandle",
        "Machine",
    ] {
        let name = format!("splitring::{name}");
        assert!(
            lines.iter().any(|line| subject(line) == name),
            "{name} was not found"
        );
    }
    let now = lines.join("\n") + "\n";
    let path = root().join(SNAPSHOT);
    if std::env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&path, &now).expect("written");
    }
    let before = fs::read_to_string(&path).expect("the snapshot");
    let gone: Vec<_> = before
        .lines()
        .filter(|line| !lines.iter().any(|it| it == line))
        .collect();
    let new: Vec<_> = lines
        .iter()
        .filter(|line| !before.lines().any(|it| it == *line))
        .collect();
    assert!(
        before == now,
        "the public interface changed; gone: {gone:#?}; new: {new:#?}; if that is meant, run with UPDATE_PUBLIC_API=1 \
         and look at the diff of {SNAPSHOT}"
    );
}

#[test]
fn a_path_is_replaced_as_a_whole_and_with_what_follows() {
    let names =
        [("a::b::C", "x::C"), ("a::b", "y")].map(|(old, new)| (old.to_owned(), new.to_owned()));
    let names = BTreeMap::from(names);
    for (line, expected) in [
        (
            "pub fn a::b::C::new(&a::b::Cd) -> a::b::C",
            "pub fn x::C::new(&y::Cd) -> x::C",
        ),
        (
            "impl a::b::D<'_> for aa::b::C",
            "impl y::D<'_> for aa::b::C",
        ),
    ] {
        assert_eq!(renamed(line, &names), expected);
    }
    assert!(is_private("pub fn splitring::f(kvm_ioctls::Error)"));
    assert!(!is_private(
        "pub fn splitring::f(&self) -> core::result::Result<(), splitring::Error>"
    ));
}
