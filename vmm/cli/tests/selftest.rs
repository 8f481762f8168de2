//! `splitring selftest` where it can't pass, with the verdict of each case; and for an ordinary
//! user, where it can.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use splitring::selftest::{self, SelftestError, SelftestOptions, SelftestReport};
use splitring_needs as needs;
use splitring_needs::tiny;

const PROGRAM: &str = env!("CARGO_BIN_EXE_splitring");
const SHORT: [&str; 3] = ["selftest", "--seconds", "0.01"];

/// KVM ioctls (`include/uapi/linux/kvm.h`).
const KVM_SET_MSRS: u64 = 0x4008_ae89;
const KVM_SET_CPUID2: u64 = 0x4008_ae90;

/// Runs a guest that executes `code` in place of the self-test's guest.
fn run_tiny(code: &[u8]) -> Result<SelftestReport, SelftestError> {
    let options = SelftestOptions::default()
        .each(Duration::from_millis(10))
        .silence(Duration::from_secs(1))
        .guest(tiny::elf(code).leak());
    selftest::run(options, |_| ())
}

fn says(output: &Output, code: i32, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for part in parts {
        assert!(errors.contains(part), "no {part:?} in: {errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn a_guest_that_crashes_is_a_verdict() {
    if !needs::kvm() {
        return;
    }
    let error = run_tiny(tiny::TRIPLE_FAULT).expect_err("nothing was reported");
    let text = error.to_string();
    assert!(matches!(error, SelftestError::Crashed { .. }), "{text}");
    assert!(
        text.contains("triple fault") && text.contains("splitring check"),
        "{text}"
    );
}

#[test]
fn a_guest_that_hangs_is_ended_by_the_watchdog() {
    if !needs::kvm() {
        return;
    }
    let error = run_tiny(tiny::SPIN).expect_err("nothing was reported");
    let text = error.to_string();
    assert!(matches!(error, SelftestError::Hangs { .. }), "{text}");
    assert!(text.contains("splitring check"), "{text}");
}

/// Runs the self-test while a seccomp filter refuses one KVM ioctl with EINVAL.
fn run_refused(request: u64) -> Output {
    thread::spawn(move || {
        let asked = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request);
        let rule = SeccompRule::new(vec![asked.expect("a condition")]).expect("a rule");
        let filter = SeccompFilter::new(
            [(libc::SYS_ioctl, vec![rule])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EINVAL.unsigned_abs()),
            TargetArch::x86_64,
        );
        let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
        // The filter applies to this thread and the threads it starts.
        apply_filter(&program).expect("install the filter");
        Command::new(PROGRAM).args(SHORT).output()
    })
    .join()
    .expect("the thread")
    .expect("run the program")
}

#[test]
fn a_kvm_that_refuses_every_register_still_passes() {
    if !needs::kvm() {
        return;
    }
    let output = run_refused(KVM_SET_MSRS);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("selftest: ok"), "{text}");
    says(&output, 0, &[]);
}

#[test]
fn a_kvm_that_refuses_the_processors_features_is_named() {
    if !needs::kvm() {
        return;
    }
    let parts = [
        "selftest: failed",
        "set the processor's features",
        "Invalid argument",
        "splitring check",
    ];
    says(&run_refused(KVM_SET_CPUID2), 1, &parts);
}

/// Exit code of a script that lacks the permission to prepare its test.
const NOT_ALLOWED: Option<i32> = Some(9);

/// Runs `script` in a mount namespace of its own, with the program as `$0`.
fn run_in_namespace(script: &str, program: &Path) -> Output {
    let namespaces = if rustix::process::geteuid().is_root() {
        "-m"
    } else {
        "-rm"
    };
    let words = [namespaces, "sh", "-c", script];
    let output = Command::new("unshare").args(words).arg(program).output();
    output.expect("run unshare")
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let script = "mount -t tmpfs none /dev || exit 9; exec \"$0\" selftest";
    let output = run_in_namespace(script, Path::new(PROGRAM));
    if output.status.code() == NOT_ALLOWED {
        needs::lack("no mount namespaces here");
        return;
    }
    says(
        &output,
        1,
        &["selftest: failed", "cannot open /dev/kvm", "No such file"],
    );
}

/// As an ordinary user: without access to /dev/kvm the error says how to get it; with access the
/// test passes. Neither leaves files behind.
#[test]
fn an_ordinary_user_needs_nothing_but_access_to_kvm() {
    if !needs::kvm() || !needs::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // The program may be in a directory that only root can access.
    let program = dir.path().join("splitring");
    fs::copy(PROGRAM, &program).expect("copy the program");
    let files = dir.path().join("tmp");
    fs::create_dir(&files).expect("a directory for temporary files");
    for (path, mode) in [(dir.path(), 0o755), (&files, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open the directory");
    }
    let user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --";
    let run = |mode: &str| {
        let script = format!(
            "mount -t tmpfs none /mnt && mknod -m {mode} /mnt/kvm c 10 232 \
             && mount --bind /mnt/kvm /dev/kvm || exit 9
             export TMPDIR={} HOME=/nowhere
             {user} \"$0\" selftest --seconds 0.01",
            files.display()
        );
        run_in_namespace(&script, &program)
    };
    let refused = run("600");
    if refused.status.code() == NOT_ALLOWED {
        needs::lack("no device files in mount namespaces here");
        return;
    }
    let parts = [
        "selftest: failed",
        "cannot open /dev/kvm",
        "usermod -aG kvm",
    ];
    says(&refused, 1, &parts);
    let passed = run("666");
    let text = String::from_utf8_lossy(&passed.stdout);
    assert!(text.contains("selftest: ok"), "{text}");
    says(&passed, 0, &[]);
    let left: Vec<_> = fs::read_dir(&files).expect("list").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
