//! What the host refuses: KVM, permissions, memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use splitring::host::{self, Virtualisation};
use splitring_needs as needs;

use crate::files::{FAILURE, Files, PROGRAM, REBOOT, check, run};
use splitring_needs::tiny;

/// Runs the program in a mount namespace whose `/dev` was changed by `prepare`; returns `None` if
/// this system allows no mount namespaces.
fn run_in_other_dev(files: &Files, prepare: &str) -> Option<Output> {
    let namespaces: &[&str] = if rustix::process::geteuid().is_root() {
        &["-m"]
    } else {
        &["-rm"]
    };
    let allowed = Command::new("unshare")
        .args(namespaces)
        .args(["mount", "-t", "tmpfs", "none", "/mnt"])
        .output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let script = format!("{prepare} && exec \"$0\" run --kernel \"$1\"");
    let kernel = files.path("kernel");
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", &script, PROGRAM])
        .arg(kernel)
        .output();
    Some(output.expect("run in a namespace"))
}

#[test]
fn a_host_without_kvm_says_what_to_do() {
    let files = Files::new();
    let cases = [
        (
            "no /dev/kvm",
            "mount -t tmpfs none /dev",
            &["cannot open /dev/kvm", "No such file"][..],
        ),
        ("not KVM", "mount --bind /dev/null /dev/kvm", &["KVM"][..]),
    ];
    for (name, prepare, says) in cases {
        // The mount point must exist.
        if name == "not KVM" && !needs::kvm() {
            continue;
        }
        match run_in_other_dev(&files, prepare) {
            Some(output) => check(name, &output, FAILURE, says),
            None => {
                needs::lack(format!("{name}: no mount namespaces here"));
            }
        }
    }
}

#[test]
fn a_user_outside_the_kvm_group_is_told_how_to_join() {
    let files = Files::new();
    if !needs::root() || !needs::kvm() {
        return;
    }
    // The program may lie where only root looks.
    let copy = files.path("splitring");
    fs::copy(PROGRAM, &copy).expect("copy the program");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(files.dir.path(), open).expect("open the directory");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = Command::new("setpriv")
        .args(nobody)
        .arg(copy)
        .args(["run", "--kernel"])
        .arg(files.path("kernel"))
        .output();
    let output = output.expect("run as nobody");
    check(
        "no permission",
        &output,
        FAILURE,
        &[
            "cannot open /dev/kvm",
            "Permission denied",
            "usermod -aG kvm",
        ],
    );
}
#[test]
fn files_that_this_user_may_not_read_are_named() {
    let files = Files::new();
    if !needs::root() || !needs::kvm() {
        return;
    }
    fs::copy(PROGRAM, files.path("splitring")).expect("copy the program");
    let allow = |name: &str, mode: u32| {
        fs::set_permissions(files.path(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    allow("", 0o777);
    for (name, mode) in [("secret", 0o600), ("kept", 0o644)] {
        files.write(name, vec![0; 1 << 20]);
        allow(name, mode);
    }
    files.write("secret.toml", "cpus = 1\n");
    allow("secret.toml", 0o600);
    let cases: [(&str, &[&str], &[&str]); 5] = [
        (
            "kernel",
            &["--kernel", "@secret"],
            &["cannot open", "chmod"],
        ),
        (
            "initrd",
            &["--kernel", "@kernel", "--initrd", "@secret"],
            &["cannot open", "chmod"],
        ),
        (
            "disk",
            &["--kernel", "@kernel", "--disk", "@secret"],
            &["disk0: cannot open", "chmod"],
        ),
        (
            "disk that may be read only",
            &["--kernel", "@kernel", "--disk", "@kept"],
            &["disk0: cannot open", "readonly=on"],
        ),
        ("configuration", &["@secret.toml"], &["cannot read"]),
    ];
    let prepare = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/kvm c 10 232 \
                   && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    for (name, words, says) in cases {
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", prepare, "sh"])
            .arg(files.path("splitring"))
            .args(["run", "--kernel-cache", "off"])
            .args(words.iter().map(|word| files.named(word)))
            .output()
            .expect("run in a namespace");
        let says = [says, &["Permission denied"]].concat();
        check(name, &output, FAILURE, &says);
    }
}

/// Some threads are the program's, and one is a kernel thread that KVM creates at the first entry:
/// the error names the one that exceeds the limit.
#[test]
fn too_few_threads_are_an_error_that_names_the_limit() {
    let files = Files::new();
    if !needs::root() || !needs::kvm() {
        return;
    }
    fs::copy(PROGRAM, files.path("splitring")).expect("copy the program");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(files.dir.path(), open).expect("open the directory");
    let run = |threads: u32| {
        let limited = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/kvm c 10 232 \
                       && exec setpriv --reuid=65531 --regid=65531 --clear-groups prlimit --nproc=\"$@\"";
        Command::new("unshare")
            .args(["-m", "timeout", "60", "sh", "-c", limited, "sh"])
            .arg(format!("{threads}:{threads}"))
            .arg(files.path("splitring"))
            .args(["run", "--any-kvm", "--kernel-cache", "off", "--kernel"])
            .arg(files.path("kernel"))
            .output()
            .expect("run with a limit")
    };
    let mut refused = 0;
    for threads in 1..20 {
        let output = run(threads);
        if output.status.code() == Some(REBOOT) {
            break;
        }
        refused += 1;
        let name = format!("{threads} threads");
        check(&name, &output, FAILURE, &["limit on processes"]);
    }
    assert!((1..19).contains(&refused), "{refused} limits refused");
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_with_its_size() {
    let files = Files::new();
    let script = "ulimit -v 400000; exec \"$0\" run --kernel \"$1\" --memory 1G";
    let output = Command::new("sh")
        .args(["-c", script, PROGRAM])
        .arg(files.path("kernel"))
        .output()
        .expect("run");
    check(
        "unmappable",
        &output,
        FAILURE,
        &["cannot map 1024 MiB", "ulimit -v"],
    );
}

/// The host's reserved pages of 2 MiB; their number is restored on drop.
struct HugePages(String);

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn take_over() -> Option<Self> {
        let before = fs::read_to_string(HUGE_PAGES).ok()?;
        let pages = Self(before);
        (pages.set(0) == Some(0)).then_some(pages)
    }

    /// Sets their number; returns how many there are then.
    fn set(&self, count: u32) -> Option<u32> {
        fs::write(HUGE_PAGES, count.to_string()).ok()?;
        fs::read_to_string(HUGE_PAGES).ok()?.trim().parse().ok()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.0.trim());
    }
}

#[test]
fn huge_pages_that_are_not_there_are_refused_shared_or_not_and_those_that_are_there_do() {
    let files = Files::new();
    if !needs::kvm() || !needs::capabilities(&[needs::Capability::SysAdmin]) {
        return;
    }
    let Some(pages) = HugePages::take_over() else {
        needs::lack(format!(
            "{HUGE_PAGES} can't be set, or its pages are in use"
        ));
        return;
    };
    for memory in ["64M,hugepages=on", "64M,hugepages=on,shared=on"] {
        // The last number is enough for the kernel, but not for all of the memory.
        for count in [0, 1, 31] {
            if pages.set(count) != Some(count) {
                needs::lack(format!("the host has no {count} pages of 2 MiB"));
                return;
            }
            let words = ["--any-kvm", "--kernel", "@kernel", "--memory", memory];
            let output = run(&files, &words);
            let says = ["cannot map 64 MiB of huge pages", "nr_hugepages"];
            check(&format!("{count} pages, {memory}"), &output, FAILURE, &says);
        }
        if pages.set(32) != Some(32) {
            needs::lack("the host has no 32 pages of 2 MiB");
            return;
        }
        let output = run(
            &files,
            &["--any-kvm", "--kernel", "@kernel", "--memory", memory],
        );
        assert_eq!(output.status.code(), Some(REBOOT), "{memory}: {output:?}");
    }
}

/// With each limit on open files a machine is either refused with a message, or runs without one.
#[test]
fn a_machine_with_too_few_descriptors_is_refused_or_runs() {
    let files = Files::new();
    if !needs::kvm() {
        return;
    }
    files.write("unit", vec![0; 4096]);
    let words = ["--any-kvm", "--serial", "null", "--kernel", "@kernel"];
    let devices = ["--disk", "@disk", "--disk", "@unit,bus=scsi", "--cpus", "2"];
    let words: Vec<_> = words.into_iter().chain(devices).collect();
    for (refused, limit) in (8..256).enumerate() {
        let output = Command::new("prlimit")
            .arg(format!("--nofile={limit}:{limit}"))
            .args([PROGRAM, "run", "--kernel-cache", "off"])
            .args(words.iter().map(|word| files.named(word)))
            .output()
            .expect("run prlimit");
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(REBOOT) {
            assert_eq!(stderr, "", "{limit} open files");
            assert!(refused > 10, "{limit} open files are enough");
            return;
        }
        assert_eq!(output.status.code(), Some(FAILURE), "{limit}: {stderr}");
        assert!(stderr.contains("Too many open files"), "{limit}: {stderr}");
        assert!(!stderr.contains("panicked"), "{limit}: {stderr}");
    }
    panic!("255 open files are not enough");
}

#[test]
fn a_stock_kernel_is_refused_where_kvm_has_no_hardware() {
    let files = Files::new();
    let output = run(&files, &["--kernel", "@kernel"]);
    if host::virtualisation() == Virtualisation::SoftwareOnly {
        check(
            "software KVM",
            &output,
            FAILURE,
            &["without VMX or SVM", "nested virtualisation", "selftest"],
        );
    } else {
        assert_eq!(
            output.status.code(),
            Some(REBOOT),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn more_memory_than_the_host_has_is_worth_a_warning_only() {
    let Some(_) = tiny::directory() else { return };
    let files = Files::new();
    let output = run(
        &files,
        &["--any-kvm", "--kernel", "@kernel", "--memory", "512G"],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    // With limited address space it is refused instead, because it can't be mapped.
    if stderr.contains("cannot map") {
        return check("unmappable", &output, FAILURE, &["524288 MiB"]);
    }
    assert_eq!(output.status.code(), Some(REBOOT), "{stderr}");
    assert_eq!(stderr.matches("WARN").count(), 1, "{stderr}");
    assert!(stderr.contains("the guest has 524288 MiB"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "no colours in a pipe: {stderr}");
}
