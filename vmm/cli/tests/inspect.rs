//! `splitring inspect` on small images: its words, its JSON and its exit code.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use splitring_needs as needs;

fn inspect(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_splitring"))
        .arg("inspect")
        .args(arguments)
        .output()
        .expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .status()
        .expect(program);
    assert!(status.success(), "{program} {arguments:?}");
}

/// A FAT file system with a kernel and an entry whose title tries to colour the terminal.
fn image(dir: &Path) -> Option<String> {
    if !needs::program("mformat", "mtools") {
        return None;
    }
    let image = dir.join("disk.img");
    File::create(&image)
        .expect("a file")
        .set_len(8 << 20)
        .expect("room");
    let image = image.to_str().expect("UTF-8").to_owned();
    run(
        "mformat",
        &[
            "-i", &image, "-T", "16384", "-N", "abcd1234", "-v", "BOOT", "::",
        ],
    );
    let entries = dir.join("loader/entries");
    fs::create_dir_all(&entries).expect("folders");
    let entry = "title \x1b[31mTest\nlinux /vmlinuz\noptions console=ttyS0\n";
    fs::write(entries.join("test.conf"), entry).expect("an entry");
    fs::write(dir.join("vmlinuz"), [7; 20_000]).expect("a kernel");
    for name in ["loader", "vmlinuz"] {
        let path = dir.join(name);
        run(
            "mcopy",
            &["-i", &image, "-s", path.to_str().expect("UTF-8"), "::"],
        );
    }
    Some(image)
}

#[test]
fn an_image_is_described_for_people_without_its_control_characters() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(image) = image(dir.path()) else {
        return;
    };
    let (code, out, err) = inspect(&[&image]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for words in [
        "8192 KiB, no partition table",
        "FAT UUID=ABCD-1234 label=BOOT",
        "id       test",
        "cmdline  console=ttyS0",
        "kernel   /vmlinuz on the whole disk, 19 KiB",
    ] {
        assert!(out.contains(words), "{words} in:\n{out}");
    }
    assert!(!out.contains('\x1b'), "{out:?}");
}

#[test]
fn an_image_is_described_for_programs() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(image) = image(dir.path()) else {
        return;
    };
    let (code, out, _) = inspect(&["--json", &image]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(json["partitions"][0]["file_system"]["kind"], "fat");
    assert_eq!(json["entries"][0]["source"], "boot-loader-entry");
    assert_eq!(json["boots"]["kernel"]["size"], 20_000);
    assert_eq!(json["problem"], serde_json::Value::Null);
}

#[test]
fn nothing_to_boot_is_exit_code_1_with_the_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("empty.img");
    File::create(&path)
        .expect("a file")
        .set_len(1 << 20)
        .expect("room");
    let (code, out, _) = inspect(&[path.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(1));
    assert!(
        out.contains("boots nothing: cannot boot from the disk image"),
        "{out}"
    );
}

#[test]
fn what_is_no_raw_image_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("disk.qcow2");
    fs::write(&path, b"QFI\xfb\0\0\0\x03").expect("a file");
    let (code, _, err) = inspect(&[path.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("qcow2") && err.contains("qemu-img convert"),
        "{err}"
    );
    let (code, _, err) = inspect(&["/none/disk.img"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("cannot open the disk image /none/disk.img"),
        "{err}"
    );
}
