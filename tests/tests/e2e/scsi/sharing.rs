//! One image on two controllers.

use splitring_tests::assets::Disk;

use crate::scsi::guest;

#[test]
#[ignore = "needs a stock guest"]
fn two_controllers_share_an_image_under_reservations() {
    let disk = Disk::empty(64 << 20);
    let disks = [
        (&disk, ",controller=0,share=on"),
        (&disk, ",controller=1,share=on"),
    ];
    let (_root, mut guest) = guest(&disks);
    let page = "sg_vpd --page=di --quiet";
    assert_eq!(
        guest.succeed(&format!("{page} /dev/sda")),
        guest.succeed(&format!("{page} /dev/sdb"))
    );
    guest.succeed("sg_persist --out --register --param-sark=a1 /dev/sda");
    guest.succeed("sg_persist --out --register --param-sark=b2 /dev/sdb");
    guest.succeed("sg_persist --out --reserve --param-rk=a1 --prout-type=1 /dev/sda");
    guest.succeed("dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct");
    guest.succeed("dd if=/dev/sdb of=/dev/null bs=4k count=1 iflag=direct");
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/sdb bs=4k count=1 oflag=direct")
            .status,
        0
    );
    guest.succeed(
        "sg_persist --out --preempt --param-rk=b2 --param-sark=a1 --prout-type=1 /dev/sdb",
    );
    guest.succeed("sg_turs /dev/sda; dd if=/dev/zero of=/dev/sdb bs=4k count=1 oflag=direct");
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct")
            .status,
        0
    );
    guest.power_off();
}
