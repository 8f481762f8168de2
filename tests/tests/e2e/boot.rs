//! Stock Debian kernels boot, see the expected machine, keep what they write, and end it.

use splitring_tests::assets::{ChangedImage, Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};
use splitring_tests::{acpi, dmesg};

/// Boots from a root disk, checks what the guest sees of the machine and its log, and powers off.
fn boot(kernel: &str, image: Image, cpus: u32, memory: &str) {
    let kernel = Kernel::named(kernel);
    let root = Disk::copy_of("root");
    let mut guest = Launch::new(&kernel, image)
        .cpus(cpus)
        .memory(memory)
        .root_disk(root.path())
        .boot();
    assert_eq!(guest.succeed("uname -r").trim(), kernel.release());
    assert_eq!(guest.succeed("nproc").trim(), cpus.to_string());
    assert!(
        guest
            .succeed("grep ' / ' /proc/mounts")
            .starts_with("/dev/vda / ext4 rw")
    );
    check_topology(&mut guest, cpus);
    check_memory(&mut guest, memory);
    guest.succeed("echo kept >/root/file && sync && grep kept /root/file");
    check_log(&mut guest);
    let exit = guest.power_off();
    assert_eq!(exit.errors, "", "nothing to report");
}

/// Checks that every CPU is a core with one thread, all in one package.
fn check_topology(guest: &mut Guest, cpus: u32) {
    let lines = guest.succeed(
        "cd /sys/devices/system/cpu; for cpu in $(ls -d cpu[0-9]*); do cd $cpu/topology; \
         echo ${cpu#cpu} $(cat core_id physical_package_id thread_siblings_list core_siblings_list); cd ../..; done | sort -n",
    );
    let all = match cpus {
        1 => "0".to_owned(),
        _ => format!("0-{}", cpus - 1),
    };
    let expected: Vec<_> = (0..cpus)
        .map(|cpu| format!("{cpu} {cpu} 0 {cpu} {all}"))
        .collect();
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        expected,
        "CPU, core, package, threads, cores"
    );
    let ids = guest.succeed("grep '^apicid' /proc/cpuinfo | sort -u | wc -l");
    assert_eq!(ids.trim(), cpus.to_string(), "distinct APIC ids");
}

/// Checks the memory size. A kernel reserves part of it: page structures, its own image.
fn check_memory(guest: &mut Guest, size: &str) {
    let expected_mib: u64 = match size {
        "256M" => 256,
        "6G" => 6 * 1024,
        other => panic!("no expectation for {other}"),
    };
    let words = guest.succeed("grep MemTotal /proc/meminfo");
    let kib: u64 = words
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect(&words);
    let mib = kib / 1024;
    assert!(
        mib < expected_mib && mib > expected_mib * 3 / 5,
        "{size} of memory show as {mib} MiB"
    );
}

/// Checks that the log has no unexpected message.
fn check_log(guest: &mut Guest) {
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(
        unexpected.is_empty(),
        "unexpected kernel messages:\n{}",
        unexpected.join("\n")
    );
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn cloud_6_12_boots_from_vmlinuz_with_one_cpu_and_256_mib() {
    boot("6.12-cloud", Image::Vmlinuz, 1, "256M");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn cloud_6_12_boots_from_vmlinux_with_four_cpus_and_6_gib() {
    boot("6.12-cloud", Image::Vmlinux, 4, "6G");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn cloud_6_1_boots_from_vmlinuz_with_four_cpus_and_256_mib() {
    boot("6.1-cloud", Image::Vmlinuz, 4, "256M");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn cloud_6_1_boots_from_vmlinux_with_one_cpu_and_6_gib() {
    boot("6.1-cloud", Image::Vmlinux, 1, "6G");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn generic_6_12_boots_from_vmlinuz_with_four_cpus_and_6_gib() {
    boot("6.12-generic", Image::Vmlinuz, 4, "6G");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn generic_6_12_boots_from_vmlinux_with_one_cpu_and_256_mib() {
    boot("6.12-generic", Image::Vmlinux, 1, "256M");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn root_disk_keeps_what_was_written_over_a_reboot() {
    let kernel = Kernel::named("6.12-cloud");
    let root = Disk::copy_of("root");
    let launch = || Launch::new(&kernel, Image::Vmlinux).root_disk(root.path());
    let mut first = launch().boot();
    first.succeed("dd if=/dev/urandom of=/root/blob bs=64k count=64 2>/dev/null");
    let sum = first.succeed("sha256sum /root/blob");
    first.type_line("sync; reboot -f");
    let exit = first.finish();
    assert_eq!(exit.errors, "");

    let mut second = launch().boot();
    assert_eq!(second.succeed("sha256sum /root/blob"), sum);
    check_log(&mut second);
    second.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn without_msi_the_root_disk_works_over_intx() {
    let kernel = Kernel::named("6.12-cloud");
    let root = Disk::copy_of("root");
    let mut guest = Launch::new(&kernel, Image::Vmlinux)
        .root_disk(root.path())
        .cmdline("pci=nomsi")
        .boot();
    guest.succeed("dd if=/dev/urandom of=/root/blob bs=64k count=64 conv=fsync 2>/dev/null");
    let interrupts = guest.succeed("grep virtio /proc/interrupts");
    for line in interrupts.lines() {
        assert!(
            line.contains("IO-APIC") && line.contains("fasteoi"),
            "not INTx: {line}"
        );
    }
    guest.power_off();
}

/// Splitring finds the payload by the header, the kernel's own decompressor by its link address.
#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_kernel_with_an_unreachable_payload_decompresses_itself() {
    const PAYLOAD_LENGTH: std::ops::Range<usize> = 0x24c..0x250;
    let kernel = Kernel::named("6.12-cloud");
    let image = ChangedImage::of(&kernel, Image::Vmlinuz, |bytes| {
        bytes[PAYLOAD_LENGTH].fill(0);
    });
    let root = Disk::copy_of("root");
    let mut guest = Launch::of_file(&kernel, image.path())
        .root_disk(root.path())
        .boot();
    assert_eq!(guest.succeed("uname -r").trim(), kernel.release());
    check_log(&mut guest);
    let exit = guest.power_off();
    assert!(
        exit.errors.contains("the kernel decompresses itself"),
        "{}",
        exit.errors
    );
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn iasl_finds_no_error_in_the_tables_a_guest_sees() {
    let kernel = Kernel::named("6.12-cloud");
    let mut guest = Launch::new(&kernel, Image::Vmlinux).cpus(2).boot();
    let tables = acpi::disassemble(&mut guest);
    for name in ["DSDT", "FACP", "APIC", "MCFG"] {
        assert!(
            tables.iter().any(|table| table.name == name),
            "no {name} among the tables"
        );
    }
    for table in &tables {
        let verdict = table.verdict.to_lowercase();
        let complains = verdict.contains("error")
            || verdict.contains("warning")
            || table.source.contains("Incorrect checksum");
        assert!(!complains, "{}: {}", table.name, table.verdict);
    }
    guest.power_off();
}

mod soak {
    use super::*;

    /// The full matrix, one test per configuration, so that an interrupted soak run continues where
    /// it stopped.
    macro_rules! matrix {
        ($($name:ident: $kernel:literal, $image:ident, $cpus:literal, $memory:literal;)*) => {$(
            #[test]
            #[ignore = "needs a guest: cargo xtask test --soak"]
            fn $name() {
                boot($kernel, Image::$image, $cpus, $memory);
            }
        )*};
    }

    matrix! {
        kernel_6_12_cloud_vmlinuz_1_cpus_256m: "6.12-cloud", Vmlinuz, 1, "256M";
        kernel_6_12_cloud_vmlinuz_1_cpus_6g: "6.12-cloud", Vmlinuz, 1, "6G";
        kernel_6_12_cloud_vmlinuz_4_cpus_256m: "6.12-cloud", Vmlinuz, 4, "256M";
        kernel_6_12_cloud_vmlinuz_4_cpus_6g: "6.12-cloud", Vmlinuz, 4, "6G";
        kernel_6_12_cloud_vmlinux_1_cpus_256m: "6.12-cloud", Vmlinux, 1, "256M";
        kernel_6_12_cloud_vmlinux_1_cpus_6g: "6.12-cloud", Vmlinux, 1, "6G";
        kernel_6_12_cloud_vmlinux_4_cpus_256m: "6.12-cloud", Vmlinux, 4, "256M";
        kernel_6_12_cloud_vmlinux_4_cpus_6g: "6.12-cloud", Vmlinux, 4, "6G";
        kernel_6_1_cloud_vmlinuz_1_cpus_256m: "6.1-cloud", Vmlinuz, 1, "256M";
        kernel_6_1_cloud_vmlinuz_1_cpus_6g: "6.1-cloud", Vmlinuz, 1, "6G";
        kernel_6_1_cloud_vmlinuz_4_cpus_256m: "6.1-cloud", Vmlinuz, 4, "256M";
        kernel_6_1_cloud_vmlinuz_4_cpus_6g: "6.1-cloud", Vmlinuz, 4, "6G";
        kernel_6_1_cloud_vmlinux_1_cpus_256m: "6.1-cloud", Vmlinux, 1, "256M";
        kernel_6_1_cloud_vmlinux_1_cpus_6g: "6.1-cloud", Vmlinux, 1, "6G";
        kernel_6_1_cloud_vmlinux_4_cpus_256m: "6.1-cloud", Vmlinux, 4, "256M";
        kernel_6_1_cloud_vmlinux_4_cpus_6g: "6.1-cloud", Vmlinux, 4, "6G";
        kernel_6_12_generic_vmlinuz_1_cpus_256m: "6.12-generic", Vmlinuz, 1, "256M";
        kernel_6_12_generic_vmlinuz_1_cpus_6g: "6.12-generic", Vmlinuz, 1, "6G";
        kernel_6_12_generic_vmlinuz_4_cpus_256m: "6.12-generic", Vmlinuz, 4, "256M";
        kernel_6_12_generic_vmlinuz_4_cpus_6g: "6.12-generic", Vmlinuz, 4, "6G";
        kernel_6_12_generic_vmlinux_1_cpus_256m: "6.12-generic", Vmlinux, 1, "256M";
        kernel_6_12_generic_vmlinux_1_cpus_6g: "6.12-generic", Vmlinux, 1, "6G";
        kernel_6_12_generic_vmlinux_4_cpus_256m: "6.12-generic", Vmlinux, 4, "256M";
        kernel_6_12_generic_vmlinux_4_cpus_6g: "6.12-generic", Vmlinux, 4, "6G";
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test --soak"]
    fn thirty_two_cpus_are_cores_of_one_processor() {
        boot("6.12-cloud", Image::Vmlinux, 32, "6G");
    }
}
