//! The subjects: the same kernel, root disk and device, under Splitring and under QEMU (q35).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use splitring_tests::assets::{self, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};

const MEMORY: &str = "512M";
/// Names how long Splitring's device threads look for work before they sleep, unless they are to
/// find out.
const POLL_US: &str = "SPLITRING_POLL_US";

/// The controller of a data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Blk,
    Scsi,
}

impl Bus {
    /// Returns the guest's name of the disk after the root disk.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Blk => "/dev/vdb",
            Self::Scsi => "/dev/sda",
        }
    }

    /// Returns the key for Splitring.
    fn key(self) -> &'static str {
        match self {
            Self::Blk => ",bus=virtio",
            Self::Scsi => ",bus=scsi",
        }
    }
}

/// A device in addition to the root disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Extra<'a> {
    Disk(Bus, &'a Path),
    /// A disk as large as this file that moves no data; in Splitring only.
    Null(Bus, &'a Path),
    /// A tap device by name, and whether vhost-net moves its frames.
    Tap(&'a str, bool),
}

/// Returns the result of `work`, which is retried if it panics: the emulated machine occasionally
/// loses a guest, under any VMM.
pub(crate) fn last_of<T>(tries: usize, work: impl Fn() -> T) -> T {
    for _ in 1..tries {
        if let Ok(answer) = catch_unwind(AssertUnwindSafe(&work)) {
            return answer;
        }
        eprintln!("  a guest was lost; retrying");
    }
    work()
}

/// Starts Splitring and waits until the guest accepts typed lines.
pub(crate) fn splitring(root: &Path, extra: Extra<'_>) -> Guest {
    boot(launch(), root, extra)
}

/// The build of Splitring that it is compared with.
pub(crate) fn base(root: &Path, extra: Extra<'_>) -> Guest {
    let binary = assets::base().expect("a build to compare with");
    boot(launch().binary(binary), root, extra)
}

fn launch() -> Launch {
    let launch = Launch::new(&Kernel::named("6.12-cloud"), Image::Vmlinux).memory(MEMORY);
    match std::env::var(POLL_US) {
        Ok(window) => launch.option("--poll-us", window),
        Err(_) => launch,
    }
}

fn boot(launch: Launch, root: &Path, extra: Extra<'_>) -> Guest {
    let launch = launch.root_disk(root);
    match extra {
        Extra::Disk(bus, path) => launch.disk(path, bus.key()),
        Extra::Null(bus, path) => launch.disk(path, &format!("{},format=null", bus.key())),
        Extra::Tap(name, vhost) => {
            let vhost = if vhost { ",vhost=on" } else { "" };
            launch.option("--net", format!("tap={name}{vhost}"))
        }
    }
    .boot()
}

/// Starts QEMU and waits until the guest accepts typed lines. Each device has the options that make
/// it fast.
pub(crate) fn qemu(root: &Path, extra: Extra<'_>) -> Guest {
    let kernel = Kernel::named("6.12-cloud");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            MEMORY,
            "-nodefaults",
        ])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.image(Image::Vmlinux))
        .arg("-initrd")
        .arg(kernel.initramfs())
        .args(["-append", "console=ttyS0 quiet session=typed root=/dev/vda"])
        .args(["-object", "iothread,id=io"])
        .args([
            "-drive",
            &format!("file={},format=raw,if=none,id=root", root.display()),
        ])
        .args(["-device", "virtio-blk-pci,drive=root,disable-legacy=on"]);
    match extra {
        Extra::Disk(bus, path) => {
            let drive = format!(
                "file={},format=raw,if=none,id=data,aio=io_uring",
                path.display()
            );
            command.args(["-drive", &drive]);
            match bus {
                Bus::Blk => command.args([
                    "-device",
                    "virtio-blk-pci,drive=data,iothread=io,disable-legacy=on",
                ]),
                Bus::Scsi => command
                    .args(["-device", "virtio-scsi-pci,iothread=io,disable-legacy=on"])
                    .args(["-device", "scsi-hd,drive=data"]),
            };
        }
        Extra::Null(..) => panic!("QEMU's null device is not compared"),
        Extra::Tap(name, vhost) => {
            let vhost = if vhost { "on" } else { "off" };
            let tap = format!("tap,id=net,ifname={name},script=no,downscript=no,vhost={vhost}");
            command
                .args(["-netdev", &tap])
                .args(["-device", "virtio-net-pci,netdev=net,disable-legacy=on"]);
        }
    }
    let mut guest = Guest::start_peer(command);
    guest.wait_until_ready();
    guest
}
