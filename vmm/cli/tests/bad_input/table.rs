//! Errors on the command line, on any host with /dev/kvm.

use crate::files::{FAILURE, Files, USAGE, check, names, run};

/// An error: the arguments of `splitring run`, the exit code, and what the message must contain.
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
        &["truncated", "copy it again"],
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
        &["`much`", "write it as"],
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
        "directory as initrd",
        &["--kernel", "@kernel", "--initrd", "@directory"],
        FAILURE,
        &["cannot load", "directory", "regular file"],
    ),
    case(
        "empty initrd",
        &["--kernel", "@kernel", "--initrd", "@empty"],
        FAILURE,
        &["cannot load", "empty"],
    ),
    case(
        "pipe as kernel",
        &["--kernel", "@pipe"],
        FAILURE,
        &["pipe", "regular file"],
    ),
    case(
        "missing disk",
        &["--kernel", "@kernel", "--disk", "@absent"],
        FAILURE,
        &[
            "disk0: cannot open",
            "absent",
            "No such file",
            "check the path",
        ],
    ),
    case(
        "directory as disk",
        &["--kernel", "@kernel", "--disk", "path=@directory,id=root"],
        FAILURE,
        &["root: cannot use", "it is a directory", "block device"],
    ),
    case(
        "pipe as disk",
        &["--kernel", "@kernel", "--disk", "@pipe"],
        FAILURE,
        &["it is a pipe", "block device"],
    ),
    case(
        "empty disk",
        &["--kernel", "@kernel", "--disk", "@empty"],
        FAILURE,
        &["0 bytes", "make it larger"],
    ),
    case(
        "disk without a path",
        &["--kernel", "@kernel", "--disk", "readonly=on"],
        USAGE,
        &["missing field `path`"],
    ),
    case(
        "disk with an empty path",
        &["--kernel", "@kernel", "--disk", "path="],
        USAGE,
        &["disk0", "`path`", "name an image"],
    ),
    case(
        "the same disk twice",
        &["--kernel", "@kernel", "--disk", "@disk", "--disk", "@disk"],
        FAILURE,
        &["disk1: cannot lock", "in use", "share=on"],
    ),
    case(
        "the same disk twice, one only to read",
        &[
            "--kernel",
            "@kernel",
            "--disk",
            "@disk",
            "--disk",
            "@disk,readonly=on",
        ],
        FAILURE,
        &["disk1: cannot lock", "in use", "readonly=on to both"],
    ),
    case(
        "two devices of one name",
        &[
            "--kernel",
            "@kernel",
            "--disk",
            "@disk,id=a",
            "--net",
            "tap=t,id=a",
        ],
        USAGE,
        &["two devices have the id `a`"],
    ),
    case(
        "ports for a passt that runs already",
        &[
            "--kernel",
            "@kernel",
            "--net",
            "passt,socket=/run/passt,tcp=8080:80",
        ],
        USAGE,
        &["net0", "tcp= is for a passt", "`passt -t 8080:80`"],
    ),
    case(
        "vhost with a limit that needs the frames",
        &["--kernel", "@kernel", "--net", "tap=t,vhost=on,packets=9"],
        USAGE,
        &["net0", "vhost=on", "packets= can't be applied", "leave one"],
    ),
    case(
        "0 workers",
        &["--kernel", "@kernel", "--workers", "0"],
        USAGE,
        &["workers: 0", "give 1 to"],
    ),
    case(
        "a command line that Linux would cut",
        &["--kernel", "@kernel", "--cmdline", "tab\there"],
        USAGE,
        &["command line", "printable ASCII"],
    ),
    case(
        "missing configuration",
        &["@absent.toml"],
        FAILURE,
        &["absent.toml", "No such file"],
    ),
];

#[test]
fn every_mistake_has_one_clear_message_and_its_exit_code() {
    let files = Files::new();
    for case in CASES {
        check(case.name, &run(&files, case.words), case.code, case.says);
    }
    assert_eq!(
        names(files.dir.path()),
        [
            "big-initrd",
            "cache",
            "directory",
            "disk",
            "elf32",
            "empty",
            "kernel",
            "pipe",
            "text",
            "truncated"
        ],
        "nothing is left behind"
    );
    let half_written: Vec<_> = names(&files.path("cache/splitring/images"))
        .into_iter()
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert_eq!(half_written, [""; 0], "nor in the cache");
}
