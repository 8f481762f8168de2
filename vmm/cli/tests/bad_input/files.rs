//! The files of the test cases, and the checks that apply to every error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use splitring_needs::tiny;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_splitring");
pub(crate) const USAGE: i32 = 2;
pub(crate) const FAILURE: i32 = 1;
pub(crate) const REBOOT: i32 = 3;

/// Files that the cases use.
pub(crate) struct Files {
    pub(crate) dir: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self {
            dir: tempfile::tempdir().expect("temporary directory"),
        };
        files.write(
            "text",
            b"this is no kernel, and long enough to be one header\n".repeat(64),
        );
        files.write("empty", Vec::new());
        files.write("elf32", elf32());
        files.write("truncated", truncated_bzimage());
        // It resets the machine, if a guest can run at all.
        files.write("kernel", tiny::elf(tiny::RESET));
        files.write("disk", vec![0; 1 << 20]);
        files.write("big-initrd", vec![0; 64 << 20]);
        fs::create_dir(files.path("directory")).expect("make a directory");
        let status = Command::new("mkfifo").arg(files.path("pipe")).status();
        assert!(status.expect("run mkfifo").success(), "no pipe");
        files
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("write a test file");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces `@name` in `word` by the path of a test file.
    pub(crate) fn named(&self, word: &str) -> String {
        let Some((before, name)) = word.split_once('@') else {
            return word.to_owned();
        };
        let (name, after) = name.split_at(name.find(',').unwrap_or(name.len()));
        format!("{before}{}{after}", self.path(name).display())
    }
}

/// An ELF header of class 32.
fn elf32() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(b"\x7fELF\x01\x01\x01\x00");
    bytes[16..20].copy_from_slice(&[2, 0, 3, 0]);
    bytes
}

/// The start of a bzImage whose protected-mode part is missing.
fn truncated_bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[0x1f1] = 4;
    bytes[0x1f4..0x1f8].copy_from_slice(&0x8_0000u32.to_le_bytes());
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
    bytes[0x248..0x24c].copy_from_slice(&0x1000u32.to_le_bytes());
    bytes[0x24c..0x250].copy_from_slice(&0x10_0000u32.to_le_bytes());
    bytes
}

/// Runs `splitring run` with these arguments.
pub(crate) fn run(files: &Files, words: &[&str]) -> Output {
    let words = words.iter().map(|word| files.named(word));
    Command::new(PROGRAM)
        .arg("run")
        .args(words)
        .env("XDG_CACHE_HOME", files.path("cache"))
        .output()
        .expect("run the program")
}

/// Checks the exit code, and that there is exactly one message, which contains `says`.
pub(crate) fn check(name: &str, output: &Output, code: i32, says: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{name}: exit code; {stderr}"
    );
    for text in says {
        assert!(
            stderr.contains(text),
            "{name}: `{text}` is not in:\n{stderr}"
        );
    }
    assert_eq!(
        stderr.matches("error:").count(),
        1,
        "{name}: one error, once:\n{stderr}"
    );
    for (at, line) in stderr
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let cause = line.trim();
        if cause.len() < 20 {
            continue;
        }
        assert!(
            !stderr
                .lines()
                .enumerate()
                .any(|(other, line)| other != at && line.contains(cause)),
            "{name}: said twice: {cause}"
        );
    }
    assert!(!stderr.contains("panicked"), "{name}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "{name}: nothing belongs on standard output"
    );
}

/// Returns the names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string())
        .map(|name| name.expect("UTF-8"))
        .collect();
    names.sort();
    names
}
