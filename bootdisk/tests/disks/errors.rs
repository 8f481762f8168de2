//! What cannot be booted: one error each, with object, operation, cause and remedy.

use crate::support::{Disk, Fs, MIB, Part, Table, Tree, random, uki};
use splitring_bootdisk::{Budget, Choice, Error, ErrorKind, ReadAt, ReadFault, Survey};

/// The error of planning an image, which is also in its listing.
fn failure(image: impl ReadAt + 'static, choice: &Choice) -> Error {
    let survey = match Survey::new(image, Budget::new()) {
        Ok(survey) => survey,
        Err(error) => return error,
    };
    let error = survey.plan(choice).expect_err("nothing to boot");
    let listing = survey.listing(choice).expect("a listing");
    let problem = listing.problem.expect("a problem");
    assert_eq!(
        (problem.kind, &problem.message),
        (error.kind(), &error.to_string())
    );
    error
}

/// Checks an error's kind, and that its message has these words.
#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for word in words {
        assert!(message.contains(word), "\"{word}\" in: {message}");
    }
    let parts = [
        error.operation(),
        error.object(),
        error.cause(),
        error.remedy(),
    ];
    assert!(parts.iter().all(|part| !part.is_empty()), "{message}");
}

/// The error of a root file system with `tree`, on ext4 and a GPT.
fn of(tree: Tree) -> Option<Error> {
    let disk = Disk::new(Table::Gpt, &[Part::new(Fs::Ext4, tree)])?;
    Some(failure(disk, &Choice::new()))
}

fn grub(config: &str) -> Tree {
    Tree::new()
        .file("/boot/grub/grub.cfg", config)
        .file("/boot/vmlinuz", random(1, 1000))
}

#[test]
fn an_image_with_nothing_on_it() {
    let error = failure(vec![0; MIB as usize], &Choice::new());
    says(&error, ErrorKind::Empty, &["no file system", "--kernel"]);
    let error = failure(vec![0; 100], &Choice::new());
    says(&error, ErrorKind::Empty, &["100 bytes"]);
}

/// Bytes at places.
type Marks<'m> = [(usize, &'m [u8])];

/// An image with a signature at a place.
fn signed(size: usize, marks: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; size];
    for (at, mark) in marks {
        image[*at..*at + mark.len()].copy_from_slice(mark);
    }
    image
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    const SIZE: usize = 2 << 20;
    let cases: &[(&str, &Marks<'_>)] = &[
        ("LUKS", &[(0, b"LUKS\xba\xbe\0\x02")]),
        ("LVM", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
        ("software RAID", &[(4096, &0xa92b_4efc_u32.to_le_bytes())]),
        (
            "software RAID",
            &[(SIZE - 8192, &0xa92b_4efc_u32.to_le_bytes())],
        ),
        (
            "software RAID",
            &[(SIZE - 65536, &0xa92b_4efc_u32.to_le_bytes())],
        ),
        ("ZFS", &[(131_072 + 1024, &0x00ba_b10c_u64.to_le_bytes())]),
        (
            "bcachefs",
            &[(
                4120,
                b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
            )],
        ),
        ("F2FS", &[(1024, &0xf2f5_2010_u32.to_le_bytes())]),
        ("EROFS", &[(1024, &0xe0f5_e1e2_u32.to_le_bytes())]),
        ("squashfs", &[(0, b"hsqs")]),
    ];
    for (name, marks) in cases {
        let error = failure(signed(SIZE, marks), &Choice::new());
        says(
            &error,
            ErrorKind::Unsupported,
            &[name, "--kernel", "--firmware"],
        );
    }
    // Nobody boots from these: they explain nothing, but are in the listing.
    for (name, marks) in [
        ("swap", &[(4086, &b"SWAPSPACE2"[..])]),
        ("NTFS", &[(3, &b"NTFS    "[..])]),
    ] {
        let survey = Survey::new(signed(SIZE, marks), Budget::new()).unwrap();
        let listing = survey.listing(&Choice::new()).unwrap();
        assert_eq!(listing.partitions[0].content.as_deref(), Some(name));
        assert_eq!(listing.problem.unwrap().kind, ErrorKind::Empty);
    }
}

#[test]
fn a_damaged_file_system_beside_a_good_one_does_not_keep_that_from_booting() {
    let good = Part::new(Fs::Ext2, grub("menuentry Test { linux /boot/vmlinuz ro }"));
    let bad = Part::new(Fs::Ext4Unchecked, Tree::new().file("/data", "x")).label("boot-data");
    for parts in [[good.clone(), bad.clone()], [bad, good]] {
        let Some(disk) = Disk::new(Table::Gpt, &parts) else {
            return;
        };
        let mut image = disk.bytes();
        let start = if parts[0].label.is_empty() { 33 } else { 1 } * MIB as usize;
        // The inode tables, so that the root directory is gone and the superblock is not.
        image[start + 8192..start + (4 << 20)].fill(0xff);
        let survey = Survey::new(image, Budget::new()).unwrap();
        survey
            .plan(&Choice::new())
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_superblock_that_is_damaged() {
    let mut image = vec![0; 2 << 20];
    image[..4].copy_from_slice(b"XFSB");
    let error = failure(image, &Choice::new());
    says(&error, ErrorKind::FileSystem, &["the whole disk (XFS)"]);
}

#[test]
fn a_kernel_that_is_not_there() {
    let config = "menuentry Test { linux /boot/vmlinuz-9 ro }";
    let Some(error) = of(grub(config)) else {
        return;
    };
    let words = [
        "/boot/vmlinuz-9",
        "/boot/grub/grub.cfg on partition 1 (ext4)",
        "no such file",
        "entry=",
    ];
    says(&error, ErrorKind::Missing, &words);
}

#[test]
fn a_ramdisk_that_is_not_there() {
    let config = "menuentry Test { linux /boot/vmlinuz ro\ninitrd /boot/initrd }";
    let Some(error) = of(grub(config)) else {
        return;
    };
    says(&error, ErrorKind::Missing, &["/boot/initrd"]);
}

#[test]
fn a_ramdisk_of_four_gibibytes() {
    let config = "menuentry Test { linux /boot/vmlinuz ro\ninitrd /boot/initrd }";
    let Some(error) = of(grub(config).hole("/boot/initrd", 4096 * MIB)) else {
        return;
    };
    says(&error, ErrorKind::TooLarge, &["/boot/initrd", "4294967296"]);
}

#[test]
fn a_kernel_of_a_gibibyte_and_one_of_nothing() {
    let config = "menuentry Test { linux /boot/kernel ro }";
    let Some(error) = of(grub(config).hole("/boot/kernel", 1024 * MIB)) else {
        return;
    };
    says(&error, ErrorKind::TooLarge, &["/boot/kernel", "1073741824"]);
    let Some(error) = of(grub(config).file("/boot/kernel", "")) else {
        return;
    };
    says(&error, ErrorKind::Missing, &["/boot/kernel", "empty"]);
}

#[test]
fn a_script_that_never_ends_and_one_that_cannot_be_parsed() {
    for (config, kind) in [
        ("while true; do true; done", ErrorKind::Endless),
        (
            "menuentry x { while true; do true; done }",
            ErrorKind::Endless,
        ),
        ("source /boot/grub/grub.cfg", ErrorKind::Endless),
        ("configfile /boot/grub/grub.cfg", ErrorKind::Endless),
        ("if true; then", ErrorKind::Config),
    ] {
        let Some(error) = of(grub(config)) else {
            return;
        };
        says(
            &error,
            kind,
            &["/boot/grub/grub.cfg on partition 1", "--kernel"],
        );
    }
}

#[test]
fn a_description_that_is_too_large() {
    let Some(error) = of(grub(&"#".repeat(3 << 20))) else {
        return;
    };
    says(
        &error,
        ErrorKind::TooLarge,
        &["/boot/grub/grub.cfg", "3145728"],
    );
}

#[test]
fn a_symbolic_link_that_runs_in_circles() {
    let config = "menuentry Test { linux /boot/loop ro }";
    let tree = grub(config)
        .link("/boot/loop", "pool")
        .link("/boot/pool", "/boot/loop");
    let Some(error) = of(tree) else { return };
    says(&error, ErrorKind::Path, &["/boot/loop", "circles"]);
}

#[test]
fn a_path_that_leaves_its_file_system() {
    for path in ["/../vmlinuz", "/boot/../../etc/shadow", "/boot/out"] {
        let config = format!("menuentry Test {{ linux {path} ro }}");
        let tree = grub(&config).link("/boot/out", "../../../vmlinuz");
        let Some(error) = of(tree) else { return };
        says(&error, ErrorKind::Path, &[path, "leaves its file system"]);
    }
}

#[test]
fn an_entry_for_another_loader() {
    let Some(error) = of(grub("menuentry Windows { chainloader +1 }")) else {
        return;
    };
    says(
        &error,
        ErrorKind::Unsupported,
        &["\"Windows\"", "chainloader", "entry="],
    );
}

#[test]
fn a_kernel_on_a_logical_volume() {
    let config = "menuentry Test { set root='lvmid/a/b'\nlinux /vmlinuz ro }";
    let Some(error) = of(grub(config)) else {
        return;
    };
    says(&error, ErrorKind::Missing, &["lvmid/a/b"]);
}

#[test]
fn a_choice_that_is_no_entry() {
    let tree = grub("menuentry Test { linux /boot/vmlinuz ro }");
    let Some(disk) = Disk::new(Table::Gpt, &[Part::new(Fs::Ext4, tree)]) else {
        return;
    };
    let error = failure(disk, &Choice::new().entry("other"));
    says(
        &error,
        ErrorKind::Choice,
        &["\"other\"", "splitring inspect"],
    );
}

#[test]
fn a_unified_image_that_is_cut_short() {
    let mut image = uki(&[(".linux", &random(1, 5000))]);
    image.truncate(2000);
    let Some(error) = of(Tree::new().file("/EFI/Linux/a.efi", image)) else {
        return;
    };
    says(
        &error,
        ErrorKind::Config,
        &["/EFI/Linux/a.efi", "behind the end"],
    );
    let program = uki(&[(".text", b"code")]);
    let Some(error) = of(Tree::new().file("/EFI/Linux/a.efi", program)) else {
        return;
    };
    says(&error, ErrorKind::Unsupported, &["without a kernel"]);
}

#[test]
fn a_file_system_without_anything_to_boot() {
    let Some(error) = of(Tree::new().file("/data", "x")) else {
        return;
    };
    says(&error, ErrorKind::NoEntry, &["grub.cfg", "--firmware"]);
}

#[test]
fn a_budget_that_does_not_suffice() {
    let set: [fn(&mut Budget); 3] = [
        |budget| budget.bytes = 10_000,
        |budget| budget.steps = 10,
        |budget| budget.memory = 100,
    ];
    for set in set {
        let tree = grub("menuentry Test { linux /boot/vmlinuz ro }");
        let Some(disk) = Disk::new(Table::Gpt, &[Part::new(Fs::Ext4, tree)]) else {
            return;
        };
        let mut budget = Budget::new();
        set(&mut budget);
        let error = Survey::new(disk, budget).and_then(|survey| survey.plan(&Choice::new()));
        says(
            &error.unwrap_err(),
            ErrorKind::Budget,
            &["limit", "--kernel"],
        );
    }
}

/// A disk that fails from some byte on.
struct Failing(Disk, u64);

impl ReadAt for Failing {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        if offset + buf.len() as u64 > self.1 {
            return Err(ReadFault("a medium error".into()));
        }
        self.0.read_at(offset, buf)
    }
}

#[test]
fn a_reader_that_fails() {
    for good in [0, MIB, MIB + 200_000] {
        let tree = grub("menuentry Test { linux /boot/vmlinuz ro }");
        let Some(disk) = Disk::new(Table::Gpt, &[Part::new(Fs::Ext4, tree)]) else {
            return;
        };
        let survey = Survey::new(Failing(disk, good), Budget::new());
        let error = survey
            .and_then(|survey| survey.plan(&Choice::new()))
            .unwrap_err();
        says(&error, ErrorKind::Read, &["a medium error"]);
    }
}
