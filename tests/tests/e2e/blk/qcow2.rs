//! A qcow2 image with a backing file, used by a stock guest. `qemu-img` creates it and checks the
//! result. The VMM is the library in this process, with the optional feature.

use std::fs;
use std::path::Path;

use splitring::config::DiskConfig;
use splitring_devices::disk::config::Format;
use splitring_tests::library::LibraryGuest;

use crate::blk::block::run;
use crate::blk::disks::MIB;

fn qemu_img(dir: &Path, words: &str) -> String {
    let script = format!("cd {} && qemu-img {words}", dir.display());
    run("sh", &["-c", &script])
}

fn boot(image: &Path) -> LibraryGuest {
    let disk = DiskConfig::new(image).format(Format::Qcow2).backing(true);
    LibraryGuest::boot("qcow2", vec![disk])
}

#[test]
#[ignore = "needs a stock guest"]
fn a_qcow2_image_is_whole_and_its_backing_file_as_it_was() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let (base, image) = (dir.path().join("base.raw"), dir.path().join("image.qcow2"));
    let old = vec![0x5a; usize::try_from(16 * MIB).expect("small")];
    fs::write(&base, &old).expect("room");
    qemu_img(
        dir.path(),
        "create -q -f qcow2 -b base.raw -F raw image.qcow2 32M",
    );

    let mut guest = boot(&image);
    guest.succeed("[ $(cat /sys/block/vdb/size) = 65536 ]");
    guest.succeed("dd if=/dev/vdb bs=1M count=16 2>/dev/null | tr -d Z | wc -c | grep -qx 0");
    guest.succeed(
        "fio --eta=never --output=/tmp/fio --filename=/dev/vdb --verify=crc32c --verify_fatal=1 --ioengine=libaio \
         --iodepth=16 --direct=1 --size=512k --name=mixed --rw=randrw --bsrange=512-64k \
         --name=trimmed --rw=randtrimwrite --bs=64k --offset=8M || { cat /tmp/fio; false; }",
    );
    guest.succeed("mkfs.ext4 -q -E offset=25165824 /dev/vdb 4M 2>&1");
    guest.succeed("/usr/sbin/blkdiscard -f -o 20M -l 2M /dev/vdb");
    guest.succeed("/usr/sbin/blkdiscard -f -z -o 2M -l 1M /dev/vdb && sync /dev/vdb");
    let sum = "sha256sum /dev/vdb | cut -c -64";
    let written = guest.succeed(sum);
    guest.machine.stop();
    drop(guest);

    qemu_img(dir.path(), "check -q image.qcow2");
    qemu_img(dir.path(), "convert -O raw image.qcow2 flat.raw");
    let flat = dir.path().join("flat.raw").display().to_string();
    let judged = run("sh", &["-c", &format!("sha256sum {flat} | cut -c -64")]);
    assert_eq!(judged, written.trim(), "qemu-img reads something else");
    assert!(
        fs::read(&base).expect("there") == old,
        "the backing file was written"
    );

    let mut guest = boot(&image);
    assert_eq!(guest.succeed(sum), written, "it is not what it was");
    guest.machine.stop();
}
