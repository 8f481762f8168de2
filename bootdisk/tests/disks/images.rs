//! Images from the tools that make them: four file systems, three partition tables, four boot
//! descriptions, and what makes each file system special.

use crate::support::{Disk, Fs, MIB, Part, Table, Tree, contents, hash, plan, random, survey, uki};
use splitring_bootdisk::{Budget, Choice, FsKind, Role, Source, Survey, TableKind};

const KERNEL: usize = 1_500_123;
const INITRD: usize = 700_001;

/// A description of the same kernel and ramdisk, and what kind it is.
fn described(how: Source, links: bool) -> Tree {
    let (kernel, initrd) = (random(1, KERNEL), random(2, INITRD));
    match how {
        Source::UnifiedKernel => {
            let release = b"NAME=Test\nPRETTY_NAME=\"Test 1\"\nID=test\nVERSION_ID=1\n";
            let image = uki(&[
                (".osrel", release),
                (".cmdline", b"root=/dev/vda ro\n\0"),
                (".uname", b"6.1.0"),
                (".linux", &kernel),
                (".initrd", &initrd),
            ]);
            Tree::new().file("/EFI/Linux/test-6.1.efi", image)
        }
        Source::BootLoaderEntry => Tree::new()
            .file("/loader/loader.conf", "timeout 3\ndefault test-*\n")
            .file(
                "/loader/entries/test-6.1.conf",
                "title Test\nlinux /test/6.1/linux\ninitrd /test/6.1/initrd\noptions root=/dev/vda\noptions ro\n",
            )
            .file("/loader/entries/zzz.conf", "title Other\nlinux /none\n")
            .file("/test/6.1/linux", kernel)
            .file("/test/6.1/initrd", initrd),
        Source::Grub => {
            let name = if links { "vmlinuz" } else { "vmlinuz-6.1.0-test-with-a-long-name" };
            let config = format!(
                "set default=0\nmenuentry 'Test' {{ linux /boot/{name} root=/dev/vda ro\ninitrd /boot/initrd.img-6.1 }}\n"
            );
            let tree = Tree::new()
                .file("/boot/grub/grub.cfg", config)
                .file("/boot/vmlinuz-6.1.0-test-with-a-long-name", kernel)
                .file("/boot/initrd.img-6.1", initrd);
            if links {
                return tree.link("/boot/vmlinuz", "../boot/vmlinuz-6.1.0-test-with-a-long-name");
            }
            tree
        }
        _ => Tree::new()
            .file(
                "/extlinux.conf",
                "DEFAULT linux\nLABEL linux\n LINUX kernel/vmlinuz\n INITRD kernel/initrd\n APPEND root=/dev/vda ro\n",
            )
            .file("/kernel/vmlinuz", kernel)
            .file("/kernel/initrd", initrd),
    }
}

fn boots_from(fs: Fs, kind: FsKind) {
    let sources = [
        Source::UnifiedKernel,
        Source::BootLoaderEntry,
        Source::Grub,
        Source::Extlinux,
    ];
    for source in sources {
        let links = kind != FsKind::Fat;
        let part = [Part::new(fs, described(source, links)).label("TEST")];
        let Some(made) = part[0].make() else { return };
        for table in [Table::Gpt, Table::Mbr, Table::None] {
            let file = made.try_clone().unwrap();
            let Some(disk) = Disk::of(table, &part, vec![file]) else {
                return;
            };
            let survey = survey(disk);
            let plan = plan(&survey);
            assert_eq!(plan.source, source, "{table:?}");
            let number = u32::from(table != Table::None);
            let kernel = &plan.kernel;
            assert_eq!((kernel.partition(), kernel.file_system()), (number, kind));
            assert_eq!(
                hash(&contents(kernel)),
                hash(&random(1, KERNEL)),
                "{source:?} {table:?}"
            );
            let [initrd] = &plan.initrds[..] else {
                panic!("one ramdisk: {:?}", plan.initrds)
            };
            assert_eq!(
                hash(&contents(initrd)),
                hash(&random(2, INITRD)),
                "{source:?} {table:?}"
            );
            let expected = "root=/dev/vda ro";
            let line = plan.command_line.split("BOOT_IMAGE=").last().unwrap();
            assert!(line.ends_with(expected), "{}", plan.command_line);
            let listing = survey.listing(&Choice::new()).unwrap();
            assert_eq!(listing.problem, None);
            let file_system = listing.partitions[0].file_system.as_ref().unwrap();
            assert_eq!(file_system.kind, kind);
            assert_eq!(file_system.label.as_deref(), Some("TEST"));
            assert_eq!(listing.boots.unwrap().kernel.size, KERNEL as u64);
        }
    }
}

#[test]
fn fat32_boots_with_every_table_and_description() {
    boots_from(Fs::Fat32, FsKind::Fat);
}

#[test]
fn fat16_and_fat12_boot_with_every_table_and_description() {
    boots_from(Fs::Fat16, FsKind::Fat);
    boots_from(Fs::Fat12, FsKind::Fat);
}

#[test]
fn ext4_boots_with_every_table_and_description() {
    boots_from(Fs::Ext4, FsKind::Ext4);
}

#[test]
fn ext2_boots_with_every_table_and_description() {
    boots_from(Fs::Ext2, FsKind::Ext4);
}

#[test]
fn xfs_boots_with_every_table_and_description() {
    boots_from(Fs::Xfs, FsKind::Xfs);
}

#[test]
fn btrfs_boots_with_every_table_and_description() {
    boots_from(Fs::Btrfs, FsKind::Btrfs);
}

#[test]
fn a_cd_boots_with_every_description() {
    for source in [Source::BootLoaderEntry, Source::Grub, Source::Extlinux] {
        let part = Part::new(Fs::Iso, described(source, true)).label("TEST");
        let Some(disk) = Disk::new(Table::None, &[part]) else {
            return;
        };
        let survey = survey(disk);
        let plan = plan(&survey);
        assert_eq!(
            (plan.source, plan.kernel.file_system()),
            (source, FsKind::Iso9660)
        );
        assert_eq!(hash(&contents(&plan.kernel)), hash(&random(1, KERNEL)));
    }
}

/// The lines that `fixtures/make-btrfs.sh` writes.
fn lines(name: &str, last: u32) -> Vec<u8> {
    (0..=last)
        .map(|number| format!("{name} {number}\n"))
        .collect::<String>()
        .into_bytes()
}

fn fixture(compressed: &[u8]) -> Survey {
    let image = zstd::decode_all(compressed).unwrap();
    Survey::new(image, Budget::new()).unwrap()
}

#[test]
fn btrfs_with_zstd_and_a_named_subvolume_boots() {
    let survey = fixture(include_bytes!("../fixtures/arch.img.zst"));
    let plan = plan(&survey);
    assert_eq!(plan.id, "sys");
    assert_eq!(
        plan.command_line,
        "BOOT_IMAGE=/@/boot/vmlinuz rootflags=grub"
    );
    assert_eq!(contents(&plan.kernel), lines("kernel", 99_999));
    assert_eq!(contents(&plan.initrds[0]), lines("initrd", 49_999));
}

#[test]
fn btrfs_with_a_snapshot_as_default_subvolume_boots() {
    let survey = fixture(include_bytes!("../fixtures/suse.img.zst"));
    let plan = plan(&survey);
    assert_eq!(
        plan.command_line,
        "BOOT_IMAGE=/boot/vmlinuz rootflags=grub2"
    );
    assert_eq!(contents(&plan.kernel), lines("kernel", 99_999));
}

#[test]
fn the_newest_kernel_is_the_last_resort() {
    let tree = Tree::new()
        .file("/boot/vmlinuz-6.1.0-9-amd64", random(3, 1000))
        .file("/boot/vmlinuz-6.1.0-37-amd64", random(1, 2000))
        .file("/boot/vmlinuz-0-rescue-abc", random(4, 1000))
        .file("/boot/initrd.img-6.1.0-37-amd64", random(2, 3000))
        .file("/etc/os-release", "ID=test\n");
    let boot = Part::new(Fs::Ext4, tree);
    let Some(disk) = Disk::new(Table::Gpt, &[boot]) else {
        return;
    };
    let plan = plan(&survey(disk));
    assert_eq!(plan.source, Source::NewestKernel);
    assert_eq!(plan.kernel.path(), "/boot/vmlinuz-6.1.0-37-amd64");
    assert_eq!(plan.initrds[0].path(), "/boot/initrd.img-6.1.0-37-amd64");
    let line = format!("root=UUID={} ro console=ttyS0", crate::support::UUID);
    assert_eq!(plan.command_line, line);
}

#[test]
fn without_a_ramdisk_the_kernel_is_told_the_partition() {
    let boot = Part::new(Fs::Ext4, Tree::new().file("/vmlinuz", random(1, 2000)));
    let root = Part::new(Fs::Ext2, Tree::new()).kind("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709");
    let Some(disk) = Disk::new(Table::Gpt, &[boot, root]) else {
        return;
    };
    let survey = survey(disk);
    let listing = survey.listing(&Choice::new()).unwrap();
    assert_eq!(listing.partitions[1].role, Role::LinuxRoot);
    let uuid = listing.partitions[1].uuid.clone().unwrap();
    let line = listing.boots.unwrap().command_line;
    assert_eq!(line, format!("root=PARTUUID={uuid} ro console=ttyS0"));
}

/// The kernel's partition is cut off, its metadata is not.
#[test]
fn an_image_that_is_cut_short_is_an_error_that_says_so() {
    let part = Part::new(Fs::Ext4, described(Source::Grub, true));
    let Some(disk) = Disk::new(Table::Gpt, &[part]) else {
        return;
    };
    let whole = disk.bytes();
    let mut kinds = std::collections::BTreeSet::new();
    for cut in (0..whole.len()).step_by(1_777_777) {
        let image = whole[..cut].to_vec();
        let failure = match Survey::new(image, Budget::new()) {
            Err(error) => error,
            Ok(survey) => match survey.plan(&Choice::new()) {
                Err(error) => error,
                Ok(plan) => {
                    let files = std::iter::once(&plan.kernel).chain(&plan.initrds);
                    let read = |file: &splitring_bootdisk::BootFile| file.open()?.read_all();
                    match files.map(read).find_map(Result::err) {
                        Some(error) => error,
                        // What is cut off is not used.
                        None => continue,
                    }
                }
            },
        };
        kinds.insert(format!("{:?}", failure.kind()));
        assert!(!failure.cause().is_empty() && !failure.remedy().is_empty());
    }
    assert!(kinds.contains("Cut"), "{kinds:?}");
}

#[test]
fn the_backup_table_boots_too() {
    let part = Part::new(Fs::Ext2, described(Source::Extlinux, true));
    let Some(disk) = Disk::new(Table::Gpt, &[part]) else {
        return;
    };
    let mut image = disk.bytes();
    image[512 + 16] ^= 1;
    let survey = Survey::new(image, Budget::new()).unwrap();
    let listing = survey.listing(&Choice::new()).unwrap();
    assert_eq!(listing.table, TableKind::GptBackup);
    assert!(listing.boots.is_some());
}

#[test]
fn a_sparse_image_of_gigabytes_is_surveyed_with_few_reads() {
    let tree = described(Source::BootLoaderEntry, false);
    let Some(disk) = Disk::new(Table::Gpt, &[Part::esp(tree)]) else {
        return;
    };
    let mut budget = Budget::new();
    budget.bytes = 4 * MIB;
    budget.steps = 20_000;
    let survey = Survey::new(disk, budget).unwrap();
    let listing = survey.listing(&Choice::new()).unwrap();
    assert!(listing.boots.is_some(), "{:?}", listing.problem);
}
