//! Rules between the crates and for their layout: dependencies, calls to KVM, logging, eventfds,
//! the places of modules and tests.
//!
//! They are read from the manifests and the sources, so that no feature or target that is not built
//! can break them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of each crate, and the crates of this project and of KVM that it may depend on. Tests
/// may also use [`FOR_TESTS`].
const MAY_USE: &[(&str, &[&str])] = &[
    ("virtio", &[]),
    ("arch", &["kvm-bindings"]),
    ("bootdisk", &[]),
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
    ("vmm/cli", &["splitring", "splitring-bootdisk"]),
    ("resources/guest", &["splitring-virtio"]),
    ("resources/xtask", &[]),
    ("tests/needs", &[]),
    (
        "tests",
        &[
            "splitring",
            "splitring-arch",
            "splitring-bootdisk",
            "splitring-devices",
            "splitring-virtio",
        ],
    ),
];

/// What a test needs of the machine; not a part of the product.
const FOR_TESTS: &str = "splitring-needs";

/// Text that only a call to KVM has: the crate, its ioctl type, or the name of an ioctl.
const MARKS: &[&str] = &[
    "kvm_ioctls",
    "KVMIO",
    "KVM_RUN",
    "KVM_CREATE_VM",
    "KVM_CREATE_VCPU",
];

/// The only folder whose sources may have these marks.
const KVM_CALLER: &str = "vmm";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .to_owned()
}

/// Returns all dependencies in a manifest: normal, dev and build, for any target.
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
fn crates_depend_only_on_those_they_may_use() {
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

/// How skipped tests used to report themselves, so that they were not counted.
const UNCOUNTED: [&str; 3] = [
    "eprintln!(\"not tried",
    "eprintln!(\"left out",
    "eprintln!(\"skipped",
];
/// The one file that reports them now.
const COUNTED: &str = "tests/needs/src/lib.rs";

#[test]
fn every_skipped_test_is_recorded_in_one_place() {
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

/// The one file that may create eventfds. It makes them close-on-exec.
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

/// Files of `devices` that log without a rate limit: the number of lines, and why no guest can
/// flood the log with them. All other lines are logged through `devices/src/log.rs`.
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
fn virtio_and_bootdisk_need_no_standard_library() {
    for folder in ["virtio", "bootdisk"] {
        let root = workspace().join(folder).join("src/lib.rs");
        let text = fs::read_to_string(root).expect("the crate's root");
        assert!(
            text.lines()
                .any(|line| line.trim() == "#![no_std]" || line.contains("no_std)]")),
            "{folder}"
        );
    }
}

/// The folders of the crates that follow the layout rules of [`violations`].
const UNIFORM: &[&str] = &[
    "virtio",
    "vmm/cli",
    "arch",
    "bootdisk",
    "resources/guest",
    "resources/xtask",
    "tests",
    "tests/needs",
];
/// The folders of the crates that do not follow them yet. When one does, move it to [`UNIFORM`]: a
/// test fails until then.
const NOT_YET_UNIFORM: &[&str] = &["devices", "vmm"];

/// Files that include a source file by its path, and why.
const INCLUDES: &[(&str, &str)] = &[(
    "resources/xtask/src/host.rs",
    "xtask may not depend on vmm, but detects hardware virtualisation by the same rule",
)];

/// The folder of the end-to-end tests, which only `cargo xtask test` runs: the only ignored ones.
const END_TO_END: &str = "tests/tests/e2e";
/// Maximum number of columns of a comment line.
const COMMENT_WIDTH: usize = 100;

/// Returns the layout rules that a source file breaks. `file` is its path below the workspace.
///
/// A module `foo` is `foo.rs`, its children are in `foo/`, and its unit tests are `foo/tests.rs`. A
/// tier is a directory or a module, never a prefix of a name.
fn violations(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let name = file.rsplit('/').next().unwrap_or(file);
    if name == "mod.rs" {
        found.push(format!(
            "{file}: is called mod.rs; name it after its module"
        ));
    }
    if name.ends_with("_tests.rs") {
        found.push(format!("{file}: unit tests belong in a file tests.rs"));
    }
    let may_include = INCLUDES.iter().any(|(includes, _)| *includes == file);
    let is_source = file.contains("src/");
    let is_integration = file.starts_with("tests/tests/");
    let is_unit_test = name == "tests.rs" || file.contains("/tests/");
    for (line, number) in text.lines().zip(1..) {
        let code = line.trim_start();
        let mut broken = |rule: &str| found.push(format!("{file}:{number}: {rule}"));
        if code.starts_with("#[path") && !may_include {
            broken("#[path] hides where a module is");
        }
        if is_source && code.starts_with("mod tests {") {
            broken("unit tests belong in a file tests.rs");
        }
        if is_source && !is_unit_test && code == "#[test]" {
            broken("a test outside of a file tests.rs");
        }
        if code.starts_with("fn soak_") || code.starts_with("fn e2e_") {
            broken("a tier is a module, not the prefix of a test's name");
        }
        if code.starts_with("#[ignore") && is_integration && !file.starts_with(END_TO_END) {
            broken("only end-to-end tests are ignored");
        }
        if code.starts_with("//") && line.chars().count() > COMMENT_WIDTH {
            broken("a comment line of more than 100 columns");
        }
    }
    found
}

/// Returns all violations below a folder.
fn violations_in(folder: &str) -> Vec<String> {
    let root = workspace();
    let mut files = Vec::new();
    sources(&root.join(folder), &mut files);
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("a source file");
        let file = path.strip_prefix(&root).expect("below the workspace");
        found.extend(violations(&file.display().to_string(), &text));
    }
    found
}

#[test]
fn crates_with_the_uniform_layout_keep_it() {
    let found: Vec<String> = UNIFORM.iter().flat_map(|it| violations_in(it)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_crate_with_the_uniform_layout_is_in_the_list() {
    let mut listed: Vec<&str> = [UNIFORM, NOT_YET_UNIFORM].concat();
    listed.sort_unstable();
    let mut crates: Vec<&str> = MAY_USE.iter().map(|(folder, _)| *folder).collect();
    crates.sort_unstable();
    assert_eq!(listed, crates);
    for folder in NOT_YET_UNIFORM {
        assert!(
            !violations_in(folder).is_empty(),
            "{folder} follows the layout rules now: move it to UNIFORM"
        );
    }
}

#[test]
fn each_layout_rule_finds_its_violation() {
    let long = format!("// {}", "x".repeat(98));
    for (file, text) in [
        ("arch/src/foo/mod.rs", ""),
        ("arch/src/foo_tests.rs", ""),
        ("arch/src/foo.rs", "#[path = \"bar.rs\"]\nmod bar;"),
        ("arch/src/foo.rs", "#[cfg(test)]\nmod tests {\n}"),
        ("arch/src/foo.rs", "#[test]\nfn it_works() {}"),
        ("tests/tests/e2e/foo.rs", "fn soak_it_works() {}"),
        ("tests/tests/foo.rs", "#[ignore = \"slow\"]"),
        ("arch/src/foo.rs", &long),
    ] {
        assert_eq!(violations(file, text).len(), 1, "{file}: {text}");
    }
    assert_eq!(violations("arch/src/foo/tests.rs", "#[test]"), [""; 0]);
}
