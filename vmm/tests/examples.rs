//! The examples work as described, with guests of a few instructions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use splitring_needs::tiny::{POWEROFF, PRINT, SLEEP, SPIN, directory, kernel};

/// Builds the example `name`; returns its path.
fn built(name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target directory");
    let status = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--package",
            "splitring",
            "--example",
            name,
            "--target-dir",
        ])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{name} is built");
    target.join("debug/examples").join(name)
}

/// Returns the output of the example `name` with a guest that runs `code`, which is its first
/// argument; the paths of the created `images` follow. The example must succeed.
#[track_caller]
fn printed(name: &str, code: &[u8], images: &[&str]) -> Option<String> {
    let dir = directory()?;
    let kernel = kernel(dir.path(), code);
    let mut command = Command::new(built(name));
    command.arg(kernel);
    for image in images {
        let path = dir.path().join(image);
        fs::write(&path, vec![0; 1 << 20]).expect("an image");
        command.arg(path);
    }
    let output = command.arg("any-kvm").output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    Some(String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn a_kernel_boots_and_its_console_is_printed() {
    if let Some(text) = printed("boot", PRINT, &[]) {
        assert_eq!(text, "A\nended: the guest powered off\n");
    }
}

#[test]
fn one_hundred_machines_live_in_a_process() {
    if let Some(text) = printed("hundred", SLEEP, &[]) {
        for what in ["started", "paused", "stopped"] {
            assert!(
                text.contains(&format!("100 machines {what} after")),
                "{text}"
            );
        }
    }
}

#[test]
fn a_disk_of_ones_own_has_its_place_and_counts() {
    if let Some(text) = printed("own_disk", POWEROFF, &[]) {
        assert!(text.contains("numbers is at 00:03.0\n"), "{text}");
        assert!(
            text.ends_with("ended: the guest powered off; 0 bytes served\n"),
            "{text}"
        );
    }
}

#[test]
fn a_network_backend_of_ones_own_connects_two_machines() {
    if let Some(text) = printed("own_net", POWEROFF, &[]) {
        let line = |name| format!("{name} ended: the guest powered off; 0 frames sent\n");
        assert_eq!(text, line("left") + &line("right"));
    }
}

#[test]
fn events_are_awaited_in_tokio() {
    if let Some(text) = printed("events", POWEROFF, &[]) {
        assert_eq!(text, "Started\nEnded(PowerOff)\n");
    }
}

#[test]
fn a_scsi_disk_comes_and_goes() {
    if let Some(text) = printed("hotplug", SPIN, &["first", "second"]) {
        assert!(
            text.contains("added extra at target 1, 1048576 bytes\n"),
            "{text}"
        );
        assert!(text.contains("removed; left: [\"disk0\"]\n"), "{text}");
        for event in ["DiskAdded", "DiskRemoved"] {
            assert!(text.contains(event), "{event}: {text}");
        }
    }
}
