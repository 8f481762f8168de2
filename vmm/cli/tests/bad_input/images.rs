//! Disk images that somebody else has, and configuration files.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::files::{FAILURE, Files, PROGRAM, REBOOT, USAGE, check, run};
use crate::tiny;

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
    let cases = [
        ("absent", "disk", &["absent", "No such file"]),
        ("text", "disk", &["text", "not a kernel"]),
        ("kernel", "directory", &["disk0", "directory"]),
    ];
    for (kernel, disk, says) in cases {
        let (kernel, disk) = (path(kernel), path(disk));
        let text = format!("kernel = \"{kernel}\"\n[[disk]]\npath = \"{disk}\"\n");
        files.write("vm.toml", text);
        let output = Command::new(PROGRAM)
            .arg("check")
            .arg(files.path("vm.toml"))
            .env("XDG_CACHE_HOME", files.path("cache"))
            .output()
            .expect("run the program");
        check(&kernel, &output, FAILURE, says);
    }
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
