//! What an operator can get wrong, each with one clear message and its exit code. Everything is tried on the real program; nothing here needs a working KVM to run a guest.

mod tiny;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use splitring::host::{self, Virtualisation};

const PROGRAM: &str = env!("CARGO_BIN_EXE_splitring");
const USAGE: i32 = 2;
const FAILURE: i32 = 1;
const REBOOT: i32 = 3;

/// Files the cases are made of.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
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
        // It resets the machine, where a guest can run at all.
        files.write("kernel", tiny::elf(tiny::RESET));
        files.write("disk", vec![0; 1 << 20]);
        files.write("big-initrd", vec![0; 64 << 20]);
        files
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("write a test file");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
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

/// One mistake: words after `splitring run`, the exit code, and what the message must say.
struct Case {
    name: &'static str,
    words: &'static [&'static str],
    code: i32,
    says: &'static [&'static str],
}

const fn case(
    name: &'static str,
    words: &'static [&'static str],
    code: i32,
    says: &'static [&'static str],
) -> Case {
    Case {
        name,
        words,
        code,
        says,
    }
}

/// `@name` stands for the path of a test file.
const CASES: &[Case] = &[
    case("no kernel", &[], USAGE, &["no kernel is given", "--kernel"]),
    case(
        "missing kernel",
        &["--kernel", "@absent"],
        FAILURE,
        &["open", "absent", "No such file"],
    ),
    case(
        "directory as kernel",
        &["--kernel", "@"],
        FAILURE,
        &["directory"],
    ),
    case("empty kernel", &["--kernel", "@empty"], FAILURE, &["empty"]),
    case(
        "text as kernel",
        &["--kernel", "@text"],
        FAILURE,
        &["not a kernel", "vmlinu"],
    ),
    case(
        "32-bit kernel",
        &["--kernel", "@elf32"],
        FAILURE,
        &["32-bit", "x86-64"],
    ),
    case(
        "truncated bzImage",
        &["--kernel", "@truncated"],
        FAILURE,
        &["truncated", "copy it anew"],
    ),
    case(
        "missing initrd",
        &["--kernel", "@kernel", "--initrd", "@absent"],
        FAILURE,
        &["absent", "No such file"],
    ),
    case(
        "initrd that does not fit",
        &[
            "--kernel",
            "@kernel",
            "--memory",
            "32M",
            "--initrd",
            "@big-initrd",
        ],
        FAILURE,
        &["initrd", "don't fit", "more memory"],
    ),
    case(
        "memory 0",
        &["--kernel", "@kernel", "--memory", "0"],
        USAGE,
        &["memory: 0", "at least"],
    ),
    case(
        "odd memory",
        &["--kernel", "@kernel", "--memory", "67108865"],
        USAGE,
        &["multiple of 4096"],
    ),
    case(
        "memory that is no number",
        &["--kernel", "@kernel", "--memory", "much"],
        USAGE,
        &["`much`", "512M"],
    ),
    case(
        "memory beyond the address space",
        &["--kernel", "@kernel", "--memory", "65536T"],
        USAGE,
        &["memory", "the most is"],
    ),
    case(
        "huge pages that are not there",
        &["--kernel", "@kernel", "--memory", "1T,hugepages=on"],
        FAILURE,
        &["huge pages", "nr_hugepages"],
    ),
    case(
        "0 vCPUs",
        &["--kernel", "@kernel", "--cpus", "0"],
        USAGE,
        &["cpus: 0", "give 1 to"],
    ),
    case(
        "too many vCPUs",
        &["--kernel", "@kernel", "--cpus", "1000"],
        USAGE,
        &["cpus: 1000", "give 1 to"],
    ),
    case(
        "unknown flag",
        &["--kernle", "@kernel"],
        USAGE,
        &["--kernle"],
    ),
    case(
        "unknown sub-key",
        &["--kernel", "@kernel", "--memory", "64M,colour=red"],
        USAGE,
        &["unknown field `colour`", "size"],
    ),
    case(
        "sub-key twice",
        &["--kernel", "@kernel", "--memory", "size=64M,size=32M"],
        USAGE,
        &["`size` is given twice"],
    ),
    case(
        "missing configuration",
        &["@absent.toml"],
        FAILURE,
        &["absent.toml", "No such file"],
    ),
];

fn run(files: &Files, words: &[&str]) -> Output {
    let words = words.iter().map(|word| match word.split_once('@') {
        Some((before, name)) => {
            let (name, after) = name.split_at(name.find(',').unwrap_or(name.len()));
            format!("{before}{}{after}", files.path(name).display())
        }
        None => (*word).to_owned(),
    });
    Command::new(PROGRAM)
        .arg("run")
        .args(words)
        .output()
        .expect("run the program")
}

fn check(name: &str, output: &Output, code: i32, says: &[&str]) {
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
                .skip(at + 1)
                .any(|later| later.contains(cause)),
            "{name}: said twice: {cause}"
        );
    }
    assert!(!stderr.contains("panicked"), "{name}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "{name}: nothing belongs on standard output"
    );
}

#[test]
fn every_mistake_has_one_clear_message_and_its_exit_code() {
    let files = Files::new();
    for case in CASES {
        check(case.name, &run(&files, case.words), case.code, case.says);
    }
    let mut left: Vec<_> = fs::read_dir(files.dir.path())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "big-initrd",
            "disk",
            "elf32",
            "empty",
            "kernel",
            "text",
            "truncated"
        ],
        "nothing is left behind"
    );
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

/// Runs the program where `/dev` is what `prepare` makes of it; None where this system allows no mount namespaces.
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
        if name == "not KVM" && !Path::new("/dev/kvm").exists() {
            continue;
        }
        match run_in_other_dev(&files, prepare) {
            Some(output) => check(name, &output, FAILURE, says),
            None => eprintln!("{name}: not tried, no mount namespaces here"),
        }
    }
}

#[test]
fn a_user_outside_the_kvm_group_is_told_how_to_join() {
    let files = Files::new();
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/kvm").exists() {
        eprintln!("not tried: needs root, to become somebody else, and /dev/kvm");
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
