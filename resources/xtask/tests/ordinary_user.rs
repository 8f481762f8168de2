//! An ordinary user gets the exact command to run, and nothing is installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use splitring_needs as needs;

const NOBODY: u32 = 65534;

/// Runs `xtask demo` as nobody with this search path; `None` if this process can't change its user.
fn demo(dir: &Path, path: &str) -> Option<Output> {
    let everybodys = |file: fs::Metadata| file.permissions().mode() & 0o002 != 0;
    if !needs::root() {
        return None;
    }
    if fs::metadata("/dev/kvm").is_ok_and(everybodys) {
        needs::lack("everybody may use /dev/kvm here");
        return None;
    }
    // The program may be in a directory that only root can read.
    let copy = dir.join("xtask");
    fs::copy(env!("CARGO_BIN_EXE_xtask"), &copy).expect("copy the program");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open the directory");
    chown(dir, Some(NOBODY), Some(NOBODY)).expect("give the directory away");
    let output = Command::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["demo", "--batch"])
        .env("PATH", path)
        .env("HOME", dir)
        .current_dir(dir)
        .output();
    Some(output.expect("run as nobody"))
}

#[test]
fn missing_packages_are_named_with_the_command_that_installs_them() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let Some(output) = demo(dir.path(), "/nowhere") else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    // Alone, or together with other missing packages.
    let packages = errors
        .lines()
        .find_map(|line| {
            let line = line.trim();
            line.strip_prefix("sudo apt-get install --no-install-recommends ")
        })
        .expect(&errors);
    assert!(
        packages.split(' ').any(|name| name == "qemu-system-x86"),
        "{errors}"
    );
}

#[test]
fn a_command_that_needs_root_is_shown() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let qemu = std::env::split_paths(&path).any(|dir| dir.join("qemu-system-x86_64").exists());
    let virtiofsd = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
    if !qemu || !virtiofsd.iter().any(|path| Path::new(path).exists()) {
        needs::lack("the lab's programs are not installed");
        return;
    }
    let Some(output) = demo(dir.path(), &path) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(
        errors.contains("sudo -E env \"PATH=$PATH\" cargo xtask demo --batch"),
        "{errors}"
    );
}
