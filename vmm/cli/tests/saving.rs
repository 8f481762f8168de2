//! A kernel that is not in the cache yet gets there behind the guest's back.
//!
//! Without /dev/kvm the tests say so and pass.

#[path = "../../tests/tiny/mod.rs"]
mod tiny;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A guest of these instructions whose kernel may be kept in `dir`.
fn start(dir: &Path, code: &[u8]) -> Child {
    let kernel = tiny::config(dir, code).kernel.expect("a kernel");
    Command::new(env!("CARGO_BIN_EXE_splitring"))
        .args(["run", "--any-kvm", "--kernel"])
        .arg(kernel)
        .env("XDG_CACHE_HOME", dir)
        .stdin(Stdio::null())
        .spawn()
        .expect("starts")
}

/// The endings of the names in the cache, each once: how many records there are depends on how old the kernel's file is.
fn saved(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("splitring/images")) else {
        return Vec::new();
    };
    let mut endings: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string();
            Some(name.ok()?.rsplit_once('.')?.1.to_owned())
        })
        .collect();
    endings.sort();
    endings.dedup();
    endings
}

#[test]
fn a_guest_that_ends_at_once_leaves_its_kernel() {
    let Some(dir) = tiny::directory() else { return };
    for _ in 0..2 {
        let status = start(dir.path(), tiny::POWEROFF).wait().expect("ends");
        assert!(status.success(), "{status}");
        assert_eq!(saved(dir.path()), ["image", "record"]);
    }
}

#[test]
fn a_busy_guest_does_not_keep_its_kernel_from_being_saved() {
    let Some(dir) = tiny::directory() else { return };
    let mut guest = start(dir.path(), tiny::SPIN);
    let started = Instant::now();
    while saved(dir.path()) != ["image", "record"] {
        assert!(started.elapsed() < PATIENCE, "it is not saved");
        assert_eq!(guest.try_wait().expect("its state"), None, "it runs");
        thread::sleep(Duration::from_millis(10));
    }
    guest.kill().expect("kill");
    guest.wait().expect("ends");
}
