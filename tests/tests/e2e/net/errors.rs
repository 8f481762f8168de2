//! Mistakes of an operator, with the real binary: one clear error each, which names the object and
//! the remedy.

use std::path::Path;
use std::process::{Command, Stdio};

use splitring_tests::assets::{self, Image, Kernel};
use splitring_tests::user::{UID, User};

use crate::net::endpoints::Host;
use crate::net::links::until;

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// The user that runs it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    Nobody,
}
use Who::{Nobody, Root};

/// `--net`, the user, the exit code, and what the message must contain.
const TABLE: &[(&str, Who, i32, &[&str])] = &[
    (
        "tap=spnone",
        Nobody,
        FAILURE,
        &[
            "net0: tap spnone",
            "no such interface",
            "ip tuntap add dev spnone mode tap",
            "user",
        ],
    ),
    (
        "tap=spnone,queues=2",
        Nobody,
        FAILURE,
        &["tap spnone", "multi_queue"],
    ),
    (
        "tap=spbusy",
        Root,
        FAILURE,
        &["tap spbusy", "in use by another program", "stop it"],
    ),
    (
        "tap=sproot",
        Nobody,
        FAILURE,
        &["tap sproot", "not permitted", "another user", "ip tuntap"],
    ),
    (
        "tap=sptun",
        Root,
        FAILURE,
        &["tap sptun", "flags do not fit", "TAP interface"],
    ),
    (
        "tap=lo",
        Root,
        FAILURE,
        &["tap lo", "no TAP interface", "name one"],
    ),
    (
        "tap=spone,queues=2",
        Root,
        FAILURE,
        &["tap spone", "made with `multi_queue`", "queues=2"],
    ),
    (
        "tap=spmany",
        Root,
        FAILURE,
        &["tap spmany", "made without `multi_queue`", "queues=1"],
    ),
    (
        "tap=a name",
        Root,
        FAILURE,
        &["`a name`", "no interface name", "without blanks"],
    ),
    (
        "tap=averyverylongname",
        Root,
        FAILURE,
        &["averyverylongname", "1 to 15 characters"],
    ),
    ("fd=77", Root, FAILURE, &["fd 77", "not an open descriptor"]),
    (
        "passt=on",
        Nobody,
        FAILURE,
        &[
            "net0: cannot start passt",
            "install it",
            "apt install passt",
            "socket=",
        ],
    ),
    (
        "passt=on,socket=/nowhere/passt",
        Root,
        FAILURE,
        &[
            "cannot connect to passt at /nowhere/passt",
            "start it first",
        ],
    ),
    (
        "tap=spone,mac=01:00:00:00:00:01",
        Root,
        USAGE,
        &["net0: mac=01:00:00:00:00:01", "first byte must be even"],
    ),
    (
        "tap=spone,mac=52:54",
        Root,
        USAGE,
        &["`52:54` is no MAC address", "52:54:00:12:34:56"],
    ),
    (
        "tap=spone,mtu=67",
        Root,
        USAGE,
        &["net0: mtu=67", "must be 68 to 65535"],
    ),
    ("tap=spone,mtu=65536", Root, USAGE, &["mtu", "65536"]),
    (
        "tap=spone,queues=33",
        Root,
        USAGE,
        &["queues=33", "1 to 32"],
    ),
    (
        "tap=spone,queue-size=100",
        Root,
        USAGE,
        &["queue-size=100", "power of two"],
    ),
    (
        "tap=spone,packets=0",
        Root,
        USAGE,
        &["packets=0", "leave it out"],
    ),
    ("tap=spone,bandwidth=fast", Root, USAGE, &["`fast`", "10M"]),
    (
        "tap=spone,passt=on",
        Root,
        USAGE,
        &["exactly one of tap=, fd= and passt"],
    ),
    (
        "tap=spone,tcp=22",
        Root,
        USAGE,
        &["tcp= goes with passt only"],
    ),
    (
        "mtu=1500",
        Root,
        USAGE,
        &["exactly one of tap=, fd= and passt"],
    ),
    ("tap=spone,colour=red", Root, USAGE, &["colour", "--help"]),
];

#[test]
#[ignore = "needs KVM and root: cargo xtask test"]
fn every_mistake_gets_one_clear_error_that_names_the_remedy() {
    let Some(host) = Host::new() else { return };
    host.tools.sh(
        "ip tuntap add sproot mode tap user 0; ip tuntap add sptun mode tun; ip tuntap add spone mode tap; \
         ip tuntap add spmany mode tap multi_queue; ip tuntap add spbusy mode tap; ip link set spbusy up",
    );
    let busy = run("tap=spbusy", Root, None, true);
    // Without a process at its other end it has no carrier.
    until("the tap is taken", || {
        let carrier = std::fs::read_to_string("/sys/class/net/spbusy/carrier");
        carrier.is_ok_and(|carrier| carrier.trim() == "1")
    });
    let user = User::new();
    let mut failed = Vec::new();
    for (net, who, code, parts) in TABLE {
        let user = (*who == Nobody).then_some(&user);
        let output = run(net, *who, user, false).wait_with_output();
        let output = output.expect("it ends");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = parts.iter().all(|part| text.contains(part));
        if output.status.code() != Some(*code) || !said || text.contains("panicked") {
            failed.push(format!("--net {net}: {:?}\n{text}", output.status));
        }
    }
    end(busy);
    host.tools
        .sh("for tap in sproot spone spmany spbusy sptun; do ip link del $tap; done");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn run(net: &str, who: Who, user: Option<&User>, stay: bool) -> std::process::Child {
    let kernel = Kernel::named("6.12-cloud");
    let (mut words, binary, image) = match user {
        Some(user) => (
            user.prefix(Path::new("/proc/self/ns/net")),
            user.path("splitring"),
            user.path("vmlinux"),
        ),
        None => (Vec::new(), assets::binary(), kernel.image(Image::Vmlinux)),
    };
    assert_eq!(
        who == Nobody,
        user.is_some(),
        "uid {UID} needs its directory"
    );
    if net == "passt=on" {
        // With this search path passt is not found.
        words.extend(["/usr/bin/env", "PATH=/nowhere"].map(Into::into));
    }
    words.push(binary.into());
    words.extend(["run", "--net", net, "--kernel"].map(Into::into));
    words.push(image.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null());
    if stay {
        command
            .args(["--cmdline", "console=ttyS0 quiet", "--initrd"])
            .arg(kernel.initramfs());
        command.stdin(Stdio::piped()).stderr(Stdio::null());
    } else {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
    }
    command.spawn().expect("it starts")
}

fn end(mut child: std::process::Child) {
    // Killed, whatever it is doing.
    drop(child.kill());
    drop(child.wait());
}
