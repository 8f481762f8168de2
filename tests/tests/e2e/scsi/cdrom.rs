//! A CD-ROM with a real file system on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use splitring_tests::assets::{Disk, Kernel};
use splitring_tests::dmesg;
use splitring_tests::network::content;
use tempfile::TempDir;

use crate::scsi::{boot, launch};

/// File sizes around multiples of a CD-ROM's block size. The last file is read with many long
/// requests.
const SIZES: [usize; 6] = [0, 1, 2047, 2048, 2049, 5_000_001];
const DEEP: &str =
    "a directory/in another/A name longer than the eight letters and three that ISO 9660 allows";

/// Returns the output of `program` in `dir`.
fn say(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|why| panic!("cannot run {program}: {why}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Writes an image with files, directories and a link, and with their checksums.
fn burn(image: &Path) {
    let tree = TempDir::new_in("/dev/shm").expect("a directory in memory");
    let place = |name: &str| tree.path().join(name);
    fs::create_dir_all(place(DEEP)).expect("directories");
    for (number, size) in SIZES.into_iter().enumerate() {
        let bytes = content(size + number);
        let name = format!("{DEEP}/{size} bytes.bin");
        fs::write(place(&name), &bytes[number..]).expect("a file in memory");
    }
    symlink(format!("{DEEP}/2049 bytes.bin"), place("link")).expect("a link in memory");
    let sums = say(
        "sh",
        &[
            "-c",
            "find . -type f -o -type l | sort | xargs -d '\\n' sha256sum",
        ],
        tree.path(),
    );
    fs::write(place("sums"), sums).expect("a file in memory");
    let image = image.to_str().expect("a path of ours");
    // With Rock Ridge: unchanged names, and links.
    say(
        "genisoimage",
        &["-quiet", "-R", "-V", "SPLITRING", "-o", image, "."],
        tree.path(),
    );
}

#[test]
#[ignore = "needs a stock guest"]
fn a_mounted_cdrom_has_the_content_that_was_written() {
    let (disc, modules) = (Disk::empty(0), Kernel::named("6.12-cloud").extra_modules());
    burn(disc.path());
    let (_root, launch) = launch();
    let launch = launch.disk(&modules, ",readonly=on");
    let mut guest = boot(launch, &[(&disc, ",media=cdrom,readonly=on")]);
    let inquiry = guest.succeed("sg_inq /dev/sr0");
    assert!(inquiry.contains("Splitring CD-ROM"), "{inquiry}");

    guest.load_extra("/dev/vdb", "isofs");
    guest.succeed("mkdir -p /mnt && mount -t iso9660 -o ro /dev/sr0 /mnt && cd /mnt");
    let files = guest.succeed("sha256sum -c sums");
    assert_eq!(files.matches(": OK").count(), SIZES.len() + 1, "{files}");
    guest.succeed("[ -L link ] && cmp link \"$(readlink link)\"");
    assert_ne!(guest.run("touch /mnt/new").status, 0);
    guest.succeed("cd /root && umount /mnt");

    // The image itself, block by block to its end, bypassing the guest's cache.
    let bytes = fs::metadata(disc.path()).expect("it was burnt").len();
    let size = guest.succeed("cat /sys/block/sr0/size");
    assert_eq!(size.trim(), (bytes / 512).to_string());
    let sum = say(
        "sha256sum",
        &[disc.path().to_str().expect("ours")],
        Path::new("/"),
    );
    let read = guest.succeed("dd if=/dev/sr0 bs=64k iflag=direct 2>/dev/null | sha256sum");
    assert_eq!(
        read.split_whitespace().next(),
        sum.split_whitespace().next()
    );
    let write = "dd if=/dev/zero of=/dev/sr0 bs=2048 count=1";
    assert_ne!(guest.run(write).status, 0);

    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    guest.power_off();
}
