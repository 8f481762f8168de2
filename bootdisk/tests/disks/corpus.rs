//! The boot descriptions of distributions, each with the plan that is expected of it.

use crate::support::{Disk, Fs, Part, Table, Tree, hash, plan, random, survey, uki};
use splitring_bootdisk::{Choice, Plan, Source, Survey};

macro_rules! corpus {
    ($name:literal) => {
        &include_bytes!(concat!("../corpus/", $name))[..]
    };
}

const BOOT_UUID: &str = "bbbbbbbb-89ab-cdef-0123-456789abcdef";
const ROOT: &str = "root=UUID=01234567-89ab-cdef-0123-456789abcdef";

/// Files that have their own path as their contents, so that a mix-up shows.
fn with(mut tree: Tree, paths: &[&str]) -> Tree {
    for path in paths {
        tree = tree.file(path, format!("{path} "));
    }
    tree
}

fn read(plan: &Plan) -> (String, Vec<String>) {
    let text = |file: &splitring_bootdisk::BootFile| {
        let bytes = file.open().unwrap().read_all().unwrap();
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    };
    (text(&plan.kernel), plan.initrds.iter().map(text).collect())
}

fn chosen(survey: &Survey, entry: &str) -> Plan {
    survey
        .plan(&Choice::new().entry(entry))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn debian() -> Option<Survey> {
    let esp = Tree::new().file("/EFI/debian/grub.cfg", corpus!("debian/stub.cfg"));
    let root = with(
        Tree::new().file("/boot/grub/grub.cfg", corpus!("debian/grub.cfg")),
        &[
            "/boot/vmlinuz-6.1.0-37-cloud-amd64",
            "/boot/initrd.img-6.1.0-37-cloud-amd64",
            "/boot/vmlinuz-6.1.0-9-cloud-amd64",
            "/boot/initrd.img-6.1.0-9-cloud-amd64",
        ],
    );
    let parts = [Part::new(Fs::Ext4, root), Part::esp(esp).uuid("11112222-0")];
    Disk::new(Table::Gpt, &parts).map(survey)
}

#[test]
fn debian_s_first_entry_boots_and_the_others_can_be_chosen() {
    let Some(survey) = debian() else { return };
    let first = plan(&survey);
    assert_eq!(
        (first.source, &*first.title),
        (Source::Grub, "Debian GNU/Linux")
    );
    assert_eq!(first.kernel.partition(), 1);
    let (kernel, initrds) = read(&first);
    assert_eq!(kernel, "/boot/vmlinuz-6.1.0-37-cloud-amd64");
    assert_eq!(initrds, ["/boot/initrd.img-6.1.0-37-cloud-amd64"]);
    let line = format!(
        "BOOT_IMAGE=/boot/vmlinuz-6.1.0-37-cloud-amd64 {ROOT} ro console=tty0 console=ttyS0,115200 \
         earlyprintk=ttyS0,115200 consoleblank=0"
    );
    assert_eq!(first.command_line, line);
    let listing = survey.listing(&Choice::new()).unwrap();
    let grub = listing
        .entries
        .iter()
        .filter(|entry| entry.source == Source::Grub);
    assert_eq!(grub.count(), 4);
    assert!(listing.entries.iter().all(|entry| entry.problem.is_none()));
    for name in [
        "gnulinux-advanced-0123>gnulinux-6.1.0-9-advanced-0123",
        "Debian GNU/Linux, with Linux 6.1.0-9-cloud-amd64",
        "3",
    ] {
        let (kernel, _) = read(&chosen(&survey, name));
        assert_eq!(kernel, "/boot/vmlinuz-6.1.0-9-cloud-amd64", "{name}");
    }
    let appended = survey.plan(&Choice::new().append("quiet")).unwrap();
    assert_eq!(appended.command_line, format!("{line} quiet"));
}

fn ubuntu(environment: Option<&str>) -> Option<Plan> {
    let mut boot = Tree::new().file("/grub/grub.cfg", corpus!("ubuntu/grub.cfg"));
    if let Some(variables) = environment {
        boot = boot.file(
            "/grub/grubenv",
            format!("# GRUB Environment Block\n{variables}####"),
        );
    }
    let boot = with(
        boot,
        &["/vmlinuz-6.8.0-60-generic", "/initrd.img-6.8.0-60-generic"],
    );
    let parts = [
        Part::new(Fs::Ext2, Tree::new()).label("cloudimg-rootfs"),
        Part::new(Fs::Ext4, boot).label("BOOT").uuid(BOOT_UUID),
    ];
    Disk::new(Table::Gpt, &parts).map(|disk| plan(&survey(disk)))
}

#[test]
fn ubuntu_boots_without_a_ramdisk_until_that_has_failed() {
    let Some(first) = ubuntu(None) else { return };
    assert_eq!(read(&first), ("/vmlinuz-6.8.0-60-generic".into(), vec![]));
    let expected = "BOOT_IMAGE=/vmlinuz-6.8.0-60-generic root=PARTUUID=aabbccdd-0000-4000-8000-000000000001 ro \
                    console=tty1 console=ttyS0 panic=-1";
    assert_eq!(first.command_line, expected);
    assert_eq!(first.kernel.partition(), 2);
    let Some(second) = ubuntu(Some("initrdfail=1\n")) else {
        return;
    };
    let (_, initrds) = read(&second);
    assert_eq!(initrds, ["/initrd.img-6.8.0-60-generic"]);
    let expected = "BOOT_IMAGE=/vmlinuz-6.8.0-60-generic root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0";
    assert_eq!(second.command_line, expected);
}

fn fedora(environment: &[u8]) -> Option<Survey> {
    let entry =
        |name: &str| format!("/loader/entries/0123456789abcdef0123456789abcdef-{name}.conf");
    let boot = Tree::new()
        .file("/grub2/grub.cfg", corpus!("fedora/grub.cfg"))
        .file("/grub2/grubenv", environment)
        .file(&entry("6.5.6-300.fc39.x86_64"), corpus!("fedora/old.conf"))
        .file(&entry("6.8.5-301.fc39.x86_64"), corpus!("fedora/new.conf"))
        .file(&entry("0-rescue"), corpus!("fedora/rescue.conf"));
    let boot = with(
        boot,
        &[
            "/vmlinuz-6.5.6-300.fc39.x86_64",
            "/initramfs-6.5.6-300.fc39.x86_64.img",
            "/vmlinuz-6.8.5-301.fc39.x86_64",
            "/initramfs-6.8.5-301.fc39.x86_64.img",
        ],
    );
    let parts = [Part::new(Fs::Ext4, boot).uuid(BOOT_UUID)];
    Disk::new(Table::Gpt, &parts).map(survey)
}

#[test]
fn fedora_boots_the_saved_entry_with_the_configuration_s_options() {
    let Some(survey) = fedora(corpus!("fedora/grubenv")) else {
        return;
    };
    let plan = plan(&survey);
    assert_eq!(plan.source, Source::BootLoaderEntry);
    assert_eq!(plan.version.as_deref(), Some("6.5.6-300.fc39.x86_64"));
    let line = format!(
        "BOOT_IMAGE=(hd0,gpt1)/vmlinuz-6.5.6-300.fc39.x86_64 {ROOT} ro rootflags=subvol=root console=ttyS0,115200n8"
    );
    assert_eq!(plan.command_line, line);
    assert_eq!(read(&plan).1, ["/initramfs-6.5.6-300.fc39.x86_64.img"]);
}

#[test]
fn fedora_without_a_saved_entry_boots_the_newest_and_the_rescue_kernel_last() {
    let Some(survey) = fedora(b"# GRUB Environment Block\n####") else {
        return;
    };
    let plan = plan(&survey);
    assert_eq!(plan.version.as_deref(), Some("6.8.5-301.fc39.x86_64"));
    assert!(
        plan.command_line
            .ends_with("no_timer_check net.ifnames=0 console=tty1 console=ttyS0,115200n8")
    );
    let listing = survey.listing(&Choice::new()).unwrap();
    let entries = listing
        .entries
        .iter()
        .filter(|entry| entry.source == Source::BootLoaderEntry);
    let entries: Vec<_> = entries.collect();
    assert!(entries[2].id.ends_with("0-rescue"), "{entries:?}");
    // Its kernel is missing, which is its own problem.
    assert!(entries[2].problem.is_some());
    assert!(entries[0].problem.is_none());
}

#[test]
fn fedora_s_menu_has_the_same_entries_by_blscfg() {
    let Some(survey) = fedora(corpus!("fedora/grubenv")) else {
        return;
    };
    let listing = survey.listing(&Choice::new()).unwrap();
    let of = |source| {
        let entries = listing
            .entries
            .iter()
            .filter(move |entry| entry.source == source);
        entries
            .map(|entry| (&entry.id, &entry.command_line))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Source::Grub), of(Source::BootLoaderEntry));
}

#[test]
fn rhel_8_takes_its_options_from_the_environment_block() {
    let boot = Tree::new()
        .file("/grub2/grubenv", corpus!("rhel/grubenv"))
        .file(
            "/loader/entries/fedcba9876543210-4.18.0-553.el8.x86_64.conf",
            corpus!("rhel/entry.conf"),
        );
    let files = [
        "/vmlinuz-4.18.0-553.el8.x86_64",
        "/initramfs-4.18.0-553.el8.x86_64.img",
    ];
    let Some(disk) = Disk::new(Table::Mbr, &[Part::new(Fs::Xfs, with(boot, &files))]) else {
        return;
    };
    let plan = plan(&survey(disk));
    assert_eq!(
        plan.command_line,
        "root=/dev/mapper/rl-root ro console=ttyS0 crashkernel=auto"
    );
    assert_eq!(read(&plan).0, files[0]);
}

#[test]
fn arch_with_systemd_boot_boots_its_default_with_microcode_first() {
    let esp = Tree::new()
        .file("/loader/loader.conf", corpus!("arch/loader.conf"))
        .file("/loader/entries/arch.conf", corpus!("arch/arch.conf"))
        .file(
            "/loader/entries/arch-fallback.conf",
            corpus!("arch/arch-fallback.conf"),
        );
    let files = [
        "/vmlinuz-linux",
        "/intel-ucode.img",
        "/initramfs-linux.img",
        "/initramfs-linux-fallback.img",
    ];
    let Some(disk) = Disk::new(Table::Gpt, &[Part::esp(with(esp, &files))]) else {
        return;
    };
    let survey = survey(disk);
    let plan = plan(&survey);
    assert_eq!(plan.title, "Arch Linux");
    assert_eq!(
        read(&plan),
        (files[0].into(), vec![files[1].into(), files[2].into()])
    );
    let expected = "root=PARTUUID=aabbccdd-0000-4000-8000-000000000002 zswap.enabled=0 rootflags=subvol=@ rw \
                    rootfstype=btrfs";
    assert_eq!(plan.command_line, expected);
    let fallback = chosen(&survey, "arch-fallback.conf");
    assert_eq!(read(&fallback).1[1], files[3]);
}

#[test]
fn arch_s_unified_images_boot_the_plain_one_before_the_fallback() {
    let release = b"NAME=\"Arch Linux\"\nPRETTY_NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n";
    let image = |name: &str| {
        uki(&[
            (".osrel", release),
            (".cmdline", name.as_bytes()),
            (".ucode", b"ucode"),
            (".linux", &random(7, 5000)),
            (".initrd", b"initrd"),
        ])
    };
    let esp = Tree::new()
        .file("/EFI/Linux/arch-linux.efi", image("plain"))
        .file("/EFI/Linux/arch-linux-fallback.efi", image("fallback"))
        .file("/EFI/Linux/broken.efi", "MZ")
        .file("/EFI/Linux/arch-tried+0-3.efi", image("tried"));
    let Some(disk) = Disk::new(Table::Gpt, &[Part::esp(esp)]) else {
        return;
    };
    let survey = survey(disk);
    let plan = plan(&survey);
    assert_eq!((&*plan.id, &*plan.command_line), ("arch-linux", "plain"));
    let bytes = |file: &splitring_bootdisk::BootFile| file.open().unwrap().read_all().unwrap();
    assert_eq!(hash(&bytes(&plan.kernel)), hash(&random(7, 5000)));
    let initrds: Vec<_> = plan.initrds.iter().map(bytes).collect();
    assert_eq!(initrds, [b"ucode".to_vec(), b"initrd".to_vec()]);
    let ids: Vec<_> = survey.listing(&Choice::new()).unwrap().entries;
    let ids: Vec<_> = ids
        .iter()
        .map(|entry| (&*entry.id, entry.problem.is_some()))
        .collect();
    let expected = [
        ("arch-linux", false),
        ("arch-linux-fallback", false),
        ("broken", true),
        ("arch-tried", false),
    ];
    assert_eq!(ids, expected);
}

#[test]
fn alpine_on_a_disk_without_a_table_boots_by_extlinux() {
    let root = Tree::new().file("/boot/extlinux.conf", corpus!("alpine/extlinux.conf"));
    let root = with(root, &["/boot/vmlinuz-virt", "/boot/initramfs-virt"]);
    let Some(disk) = Disk::new(Table::None, &[Part::new(Fs::Ext4, root)]) else {
        return;
    };
    let plan = plan(&survey(disk));
    assert_eq!(
        (plan.source, plan.kernel.partition()),
        (Source::Extlinux, 0)
    );
    assert_eq!(
        read(&plan),
        (
            "/boot/vmlinuz-virt".into(),
            vec!["/boot/initramfs-virt".into()]
        )
    );
    let expected = format!("{ROOT} modules=sd-mod,usb-storage,ext4 console=ttyS0,115200n8");
    assert_eq!(plan.command_line, expected);
}

#[test]
fn alpine_with_grub_boots_its_entry() {
    let root = Tree::new().file("/boot/grub/grub.cfg", corpus!("alpine/grub.cfg"));
    let root = with(root, &["/boot/vmlinuz-virt", "/boot/initramfs-virt"]);
    let parts = [Part::esp(Tree::new()), Part::new(Fs::Ext4, root)];
    let Some(disk) = Disk::new(Table::Gpt, &parts) else {
        return;
    };
    let plan = plan(&survey(disk));
    let expected =
        format!("BOOT_IMAGE=/boot/vmlinuz-virt {ROOT} ro rootfstype=ext4 console=ttyS0,115200");
    assert_eq!(
        (&*plan.command_line, plan.kernel.partition()),
        (&*expected, 2)
    );
}

#[test]
fn opensuse_boots_the_saved_entry_of_a_submenu() {
    let root = Tree::new()
        .file("/boot/grub2/grub.cfg", corpus!("opensuse/grub.cfg"))
        .file("/boot/grub2/grubenv", corpus!("opensuse/grubenv"));
    let root = with(
        root,
        &[
            "/boot/vmlinuz-6.9.1-1-default",
            "/boot/initrd-6.9.1-1-default",
            "/boot/vmlinuz-6.8.9-1-default",
            "/boot/initrd-6.8.9-1-default",
        ],
    );
    let Some(disk) = Disk::new(Table::Gpt, &[Part::new(Fs::Btrfs, root)]) else {
        return;
    };
    let survey = survey(disk);
    let plan = plan(&survey);
    assert_eq!(read(&plan).0, "/boot/vmlinuz-6.8.9-1-default");
    let expected = format!("BOOT_IMAGE=/boot/vmlinuz-6.8.9-1-default {ROOT} splash=silent");
    assert_eq!(plan.command_line, expected);
    let newest = chosen(&survey, "openSUSE Tumbleweed");
    assert_eq!(read(&newest).1, ["/boot/initrd-6.9.1-1-default"]);
}

#[test]
fn microos_boots_its_newest_snapshot_unless_that_has_failed() {
    let text = String::from_utf8(corpus!("opensuse/snapshot.conf").to_vec()).unwrap();
    let entry = |number: &str| {
        let snapshots = format!("snapshots/{number}");
        text.replace("27@", &format!("{number}@"))
            .replace("snapshots/27", &snapshots)
    };
    let esp = Tree::new()
        .file("/loader/entries.srel", "type1\n")
        .file(
            "/loader/entries/opensuse-microos-6.8.8-1-default-27.conf",
            entry("27"),
        )
        .file(
            "/loader/entries/opensuse-microos-6.8.8-1-default-9.conf",
            entry("9"),
        )
        .file(
            "/loader/entries/opensuse-microos-6.8.8-1-default-28+0-3.conf",
            entry("28"),
        );
    let files = [
        "/opensuse-microos/6.8.8-1-default/linux-d2c5",
        "/opensuse-microos/6.8.8-1-default/initrd-7a31",
    ];
    let Some(disk) = Disk::new(Table::Gpt, &[Part::esp(with(esp, &files))]) else {
        return;
    };
    let plan = plan(&survey(disk));
    assert_eq!(plan.id, "opensuse-microos-6.8.8-1-default-27");
    assert!(plan.command_line.contains("snapshots/27/"));
}
