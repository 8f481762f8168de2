//! The rules between the crates: who may depend on whom, and that only `vmm` calls KVM.
//!
//! Read from the manifests and the sources, so that a rule can't be broken by a feature or a target
//! that happens not to be built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A crate's folder, and every crate of ours or of KVM's that it may depend on. Tests may use [`FOR_TESTS`], too.
const MAY_USE: &[(&str, &[&str])] = &[
    ("virtio", &[]),
    ("arch", &["kvm-bindings"]),
    ("devices", &["splitring-virtio"]),
    (
        "vmm",
        &[
            "splitring-arch",
            "splitring-devices",
            "splitring-virtio",
            "kvm-bindings",
            "kvm-ioctls",
        ],
    ),
    ("vmm/cli", &["splitring"]),
    ("resources/guest", &["splitring-virtio"]),
    ("resources/xtask", &[]),
    ("tests/needs", &[]),
    (
        "tests",
        &[
            "splitring",
            "splitring-arch",
            "splitring-devices",
            "splitring-virtio",
        ],
    ),
];

/// What a test needs of the machine: no part of the product.
const FOR_TESTS: &str = "splitring-needs";

/// What a call to KVM has in its source: the crate, its ioctl type, or a number's name.
const MARKS: &[&str] = &[
    "kvm_ioctls",
    "KVMIO",
    "KVM_RUN",
    "KVM_CREATE_VM",
    "KVM_CREATE_VCPU",
];

/// The only folder whose sources may bear them.
const KVM_CALLER: &str = "vmm";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .to_owned()
}

/// All dependency names of a manifest: normal, dev and build, for any target.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else {
            continue;
        };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                for (name, entry) in table {
                    // `other = { package = "name" }` depends on name.
                    let renamed = entry.get("package").and_then(toml::Value::as_str);
                    names.insert(renamed.unwrap_or(name).to_owned());
                }
            }
            "target" => {
                for platform in table.values().filter_map(toml::Value::as_table) {
                    names.extend(dependencies(platform));
                }
            }
            _ => {}
        }
    }
    names
}

fn manifest(folder: &str) -> Option<toml::Table> {
    let path = workspace().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|why| panic!("{}: {why}", path.display())),
    )
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir)
        .expect("a folder to read")
        .filter_map(Result::ok)
    {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_arrow_between_the_crates_turns_round() {
    for (folder, allowed) in MAY_USE {
        let manifest = manifest(folder).unwrap_or_else(|| panic!("no manifest in {folder}"));
        for name in dependencies(&manifest) {
            let ours = name.starts_with("splitring") || name.starts_with("kvm-");
            assert!(
                !ours || name == FOR_TESTS || allowed.contains(&name.as_str()),
                "{folder} may not depend on {name}"
            );
        }
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_rule() {
    let top = manifest("").expect("the workspace's manifest");
    let members = top["workspace"]["members"]
        .as_array()
        .expect("a list of members");
    for member in members.iter().filter_map(toml::Value::as_str) {
        assert!(
            MAY_USE.iter().any(|(folder, _)| *folder == member),
            "no rule for {member}"
        );
    }
}

#[test]
fn only_vmm_calls_kvm() {
    let this_file = Path::new(file!()).file_name().expect("a name");
    let mut callers = 0;
    for (folder, _) in MAY_USE {
        let mut files = Vec::new();
        sources(&workspace().join(folder), &mut files);
        for file in files
            .iter()
            .filter(|file| file.file_name() != Some(this_file))
        {
            let text = fs::read_to_string(file).expect("a source file");
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for mark in code.flat_map(|line| MARKS.iter().filter(|mark| line.contains(**mark))) {
                assert!(
                    folder.starts_with(KVM_CALLER),
                    "{} has {mark}",
                    file.display()
                );
                callers += 1;
            }
        }
    }
    assert!(
        callers > 0,
        "the marks find nothing even in {KVM_CALLER}: they are out of date"
    );
}

/// How tests that were skipped used to say so, which nobody counted.
const UNCOUNTED: [&str; 3] = [
    "eprintln!(\"not tried",
    "eprintln!(\"left out",
    "eprintln!(\"skipped",
];
/// The one place that says so now.
const COUNTED: &str = "tests/needs/src/lib.rs";

#[test]
fn every_skipped_test_is_noted_in_one_place() {
    let this_file = Path::new(file!()).file_name().expect("a name");
    let mut files = Vec::new();
    for (folder, _) in MAY_USE {
        sources(&workspace().join(folder), &mut files);
    }
    files.retain(|file| {
        let text = fs::read_to_string(file).expect("a source file");
        file.file_name() != Some(this_file) && UNCOUNTED.iter().any(|mark| text.contains(mark))
    });
    files.sort();
    files.dedup();
    assert_eq!(files, [workspace().join(COUNTED)]);
}

/// The one file that may create eventfds: it makes them close-on-exec.
const EVENTFD_MAKER: &str = "devices/src/eventfd.rs";

#[test]
fn every_eventfd_comes_from_one_place() {
    let this_file = Path::new(file!()).file_name().expect("a name");
    let mut makers = Vec::new();
    for (folder, _) in MAY_USE {
        let mut files = Vec::new();
        sources(&workspace().join(folder), &mut files);
        files.retain(|file| file.file_name() != Some(this_file));
        let makes = |file: &PathBuf| {
            let text = fs::read_to_string(file).expect("a source file");
            text.contains("EventFd::new(")
        };
        makers.extend(files.into_iter().filter(makes));
    }
    assert_eq!(makers, [workspace().join(EVENTFD_MAKER)]);
}

/// Files of `devices` that log without a limit, how often, and why no guest can flood the log with it. Everything else
/// logs through `devices/src/log.rs`.
const LOGS_WITHOUT_LIMIT: &[(&str, usize, &str)] = &[
    ("log.rs", 1, "the limit itself"),
    ("worker.rs", 1, "when a worker starts"),
    ("disk/config/aio.rs", 1, "when a configuration is read"),
    ("disk/flush.rs", 1, "once per image"),
    ("disk/handle.rs", 1, "when an image is opened"),
    ("disk/image.rs", 5, "when an image is opened or resized"),
    ("disk/opening.rs", 1, "when an image is opened"),
    ("disk/range.rs", 1, "once per kind of range and image"),
    ("disk/raw.rs", 3, "when an image is opened"),
    ("net/tap/sends.rs", 1, "debugging only"),
    ("scsi/opened.rs", 2, "when a controller is opened"),
];

#[test]
fn what_a_guest_can_cause_is_logged_through_the_limit() {
    const PLAIN: [&str; 5] = ["error!", "warn!", "info!", "debug!", "event!"];
    let root = workspace().join("devices/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        assert!(
            !text.contains("use tracing::"),
            "{}: name `tracing` at each use, so that this test sees it",
            file.display()
        );
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let plain = |line: &&str| {
            let mut parts = line.split("tracing::").skip(1);
            parts.any(|rest| PLAIN.iter().any(|name| rest.starts_with(name)))
        };
        let count = code.filter(plain).count();
        if count > 0 {
            let name = file.strip_prefix(&root).expect("below the root");
            found.push((name.display().to_string(), count));
        }
    }
    found.sort();
    let mut expected: Vec<(String, usize)> = LOGS_WITHOUT_LIMIT
        .iter()
        .map(|(name, count, _)| ((*name).to_owned(), *count))
        .collect();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn virtio_needs_no_standard_library() {
    let root = workspace().join("virtio/src/lib.rs");
    let text = fs::read_to_string(root).expect("the crate's root");
    assert!(
        text.lines()
            .any(|line| line.trim() == "#![no_std]" || line.contains("no_std)]"))
    );
}
