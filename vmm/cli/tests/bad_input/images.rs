//! Disk images in use, and configuration files.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::files::{FAILURE, Files, PROGRAM, REBOOT, USAGE, check, run};
use splitring_needs::tiny;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn one_image_may_be_given_twice_if_both_say_so() {
    let Some(_) = tiny::directory() else { return };
    let files = Files::new();
    let shared = ["--disk", "@disk,share=on", "--disk", "@disk,share=on"];
    let output = run(
        &files,
        &[&["--any-kvm", "--kernel", "@kernel"][..], &shared].concat(),
    );
    assert_eq!(output.status.code(), Some(REBOOT), "{output:?}");
}

#[test]
fn a_disk_of_a_running_machine_is_busy_until_that_ends() {
    let Some(_) = tiny::directory() else { return };
    let files = Files::new();
    files.write("spin", tiny::elf(tiny::SPIN));
    let disk = format!("{}", files.path("disk").display());
    let mut first = Command::new(PROGRAM)
        .args(["run", "--any-kvm", "--kernel"])
        .arg(files.path("spin"))
        .args(["--kernel-cache", "off", "--disk", &disk])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start the first");
    let words = ["--any-kvm", "--kernel", "@kernel", "--disk", "@disk"];
    let started = Instant::now();
    let second = loop {
        let second = run(&files, &words);
        if second.status.code() != Some(REBOOT) || started.elapsed() > PATIENCE {
            break second;
        }
    };
    first.kill().expect("kill the first");
    first.wait().expect("wait for the first");
    check("busy", &second, FAILURE, &["disk0: cannot lock", "in use"]);
    let third = run(&files, &words);
    assert_eq!(third.status.code(), Some(REBOOT), "{third:?}");
}

#[test]
fn a_check_of_a_configuration_tries_its_files() {
    let files = Files::new();
    let path = |name: &str| files.path(name).display().to_string();
    files.write("log", "of an earlier run");
    let cases = [
        ("absent", "disk", "null", &["absent", "No such file"]),
        ("text", "disk", "null", &["text", "not a kernel"]),
        ("kernel", "directory", "null", &["disk0", "directory"]),
        (
            "kernel",
            "disk",
            "file=@directory",
            &["serial", "directory"],
        ),
        (
            "kernel",
            "disk",
            "file=@nowhere/log",
            &["serial", "create its directory"],
        ),
        (
            "kernel",
            "disk",
            "socket=@nowhere/socket",
            &["serial", "create its directory"],
        ),
        ("kernel", "disk", "socket=@log", &["log", "not a socket"]),
    ];
    for (kernel, disk, serial, says) in cases {
        let (kernel, disk, serial) = (path(kernel), path(disk), files.named(serial));
        let text =
            format!("kernel = \"{kernel}\"\nserial = \"{serial}\"\n[[disk]]\npath = \"{disk}\"\n");
        files.write("vm.toml", text);
        check(&kernel, &check_file(&files), FAILURE, says);
    }
    let (kernel, log) = (path("kernel"), path("log"));
    let text = format!("kernel = \"{kernel}\"\nserial = \"file={log}\"\n");
    files.write("vm.toml", text);
    // Whether a stock kernel can run here is not checked.
    let output = check_file(&files);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("serial"), "{said}");
    let log = std::fs::read_to_string(files.path("log")).expect("the log");
    assert_eq!(log, "of an earlier run");
}

/// Runs `splitring check` with the configuration `vm.toml`.
fn check_file(files: &Files) -> Output {
    Command::new(PROGRAM)
        .arg("check")
        .arg(files.path("vm.toml"))
        .env("XDG_CACHE_HOME", files.path("cache"))
        .output()
        .expect("run the program")
}

#[test]
fn an_unknown_key_in_a_file_is_named_with_its_line() {
    let files = Files::new();
    files.write("vm.toml", "cpus = 1\nkernal = \"x\"\n");
    check(
        "unknown key",
        &run(&files, &["@vm.toml"]),
        USAGE,
        &["vm.toml", "unknown field `kernal`", "line 2"],
    );
}
