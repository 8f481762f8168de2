//! sg3-utils on SCSI disks.

use splitring_tests::assets::Disk;

use crate::scsi::guest;

#[test]
#[ignore = "needs a stock guest"]
fn sg3_utils_report_the_expected_values() {
    let disk = Disk::empty(8 << 40);
    let (_root, mut guest) = guest(&[(&disk, ",serial=S1,wwn=0x5000c50015ea71ac,lun=300")]);
    let mut expect = |line: &str, words: &[&str]| {
        let said = guest.succeed(line);
        for word in words {
            assert!(
                said.contains(word),
                "`{line}` did not say {word:?}:\n{said}"
            );
        }
    };
    expect(
        "sg_inq /dev/sda",
        &[
            "SPLTRING",
            "Splitring disk",
            "Unit serial number: S1",
            "SPC-4",
        ],
    );
    expect("sg_inq --descriptors /dev/sda", &["SPC-4", "SBC-3"]);
    for page in ["0", "sn", "di", "bl", "bdc", "lbpv"] {
        expect(&format!("sg_vpd --page={page} /dev/sda"), &[]);
    }
    expect("sg_vpd --page=di /dev/sda", &["0x5000c50015ea71ac"]);
    expect(
        "sg_vpd --page=lbpv /dev/sda",
        &["LBPU): 1", "LBPWS): 1", "LBPWS10): 1"],
    );
    expect(
        "sg_opcodes -a /dev/sda",
        &["Compare and write", "Unmap", "Persistent reserve out"],
    );
    expect(
        "sg_readcap -l /dev/sda",
        &["lbpme=1, lbprz=1", "Device size: 8796093022208 bytes"],
    );
    expect("sg_luns /dev/sda", &["412c000000000000"]);
    expect("sg_luns --select=1 /dev/sda", &["c101000000000000"]);
    expect("sg_turs -n 10 /dev/sda", &["0 errors"]);
    expect("sg_requests /dev/sda", &[]);
    expect("sg_modes -a /dev/sda", &["Caching", "Control"]);
    expect("sg_logs -a /dev/sda", &[]);
    expect("sg_verify --lba=17179869183 --count=1 --16 /dev/sda", &[]);
    // Each command writes or unmaps its range, which is read back.
    let fill =
        "yes splitring | dd of=/dev/sda bs=4k count=4 iflag=fullblock oflag=direct 2>/dev/null";
    let zero = |skip: u32| {
        format!(
            "dd if=/dev/sda bs=4k skip={skip} count=1 iflag=direct 2>/dev/null | cmp -n 4096 - /dev/zero"
        )
    };
    expect(fill, &[]);
    expect(&format!("! {}", zero(0)), &[]);
    expect("sg_unmap --lba=0 --num=8 --force /dev/sda", &[]);
    expect(&zero(0), &[]);
    expect(
        "sg_write_same --16 --unmap --lba=8 --num=8 --xferlen=512 /dev/sda",
        &[],
    );
    expect(&zero(1), &[]);
    expect("sg_get_lba_status --lba=0 /dev/sda", &["deallocated"]);
    expect(
        "yes other | head -c 512 >/tmp/pattern; sg_write_same --10 --in=/tmp/pattern --lba=16 --num=8 /dev/sda",
        &[],
    );
    expect("sg_get_lba_status --lba=16 /dev/sda", &["mapped"]);
    expect(
        "dd if=/dev/sda bs=512 skip=23 count=1 iflag=direct 2>/dev/null | cmp - /tmp/pattern",
        &[],
    );
    let swap = "(head -c 512 /dev/zero; cat /tmp/pattern) >/tmp/caw; \
                sg_compare_and_write --in=/tmp/caw --lba=0 --num=1 --xferlen=1024 /dev/sda";
    expect(swap, &[]);
    expect(
        "dd if=/dev/sda bs=512 count=1 iflag=direct 2>/dev/null | cmp - /tmp/pattern",
        &[],
    );
    // The replaced data is gone: a miscompare.
    expect(&format!("{swap}; [ $? = 14 ]"), &[]);
    expect("sg_sync /dev/sda", &[]);
    expect("sg_reset --device /dev/sda", &[]);
    // The first command after the reset reports it.
    expect("sg_turs /dev/sda; sg_turs /dev/sda", &[]);
    expect(
        "sg_persist --in --report-capabilities /dev/sda",
        &["Compatible Reservation Handling(CRH): 0"],
    );
    expect("sg_persist --out --register --param-sark=abc /dev/sda", &[]);
    expect(
        "sg_persist --out --reserve --param-rk=abc --prout-type=3 /dev/sda",
        &[],
    );
    expect(
        "sg_persist --in --read-reservation /dev/sda",
        &["Key=0xabc", "Exclusive Access"],
    );
    expect(
        "sg_persist --in --read-full-status /dev/sda",
        &["Key=0xabc", "Reservation holder"],
    );
    expect(
        "sg_persist --out --release --param-rk=abc --prout-type=3 /dev/sda",
        &[],
    );
    expect("sg_persist --out --clear --param-rk=abc /dev/sda", &[]);
    expect("scsi_mandat /dev/sda", &["total number of bad errors: 0"]);
}
