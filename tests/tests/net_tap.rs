//! Our network card on a real TAP interface, in a network namespace of its own, driven in this process. One test in a
//! process of its own, so that it can count descriptors. Tier: quick; needs root and `ip`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use splitring_devices::net::tap::Tap;
use splitring_devices::net::{MacAddress, Net, NetConfig};
use splitring_tests::machine::Machine;
use splitring_virtio::driver::net::{FRAME_LEN, Transmitter};
use splitring_virtio::driver::{DeviceId, Identity, Queue, QueueOptions};
use splitring_virtio::spec::feature::VERSION_1;
use splitring_virtio::spec::net::Header;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SIZE: u16 = 64;
const TAP: &str = "t0";

/// A network namespace, gone when dropped.
struct Namespace(Child);

impl Namespace {
    fn create() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let namespace = Self(holder);
        let ours = fs::read_link("/proc/self/ns/net").expect("proc is mounted");
        while fs::read_link(namespace.path()).is_ok_and(|theirs| theirs == ours) {
            thread::sleep(Duration::from_millis(5));
        }
        namespace
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn sh(&self, line: &str) {
        let status = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["sh", "-ec", line])
            .status();
        assert!(status.expect("nsenter").success(), "`{line}`");
    }

    /// Runs `work` on a thread in here.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("it is there");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(file.as_fd(), kind).expect("root");
                work()
            });
            inside.join().expect("no panic")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The descriptors of this process, with what each is.
fn descriptors() -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").expect("list descriptors");
    let each = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        // The directory that is being read.
        (!target.starts_with("/proc")).then_some((number, target))
    });
    each.collect()
}

fn queue<P>(machine: &mut Machine) -> Queue<P> {
    let options = QueueOptions::new(SIZE, VERSION_1).tables(SIZE);
    let ring = machine.bytes(options.memory_len(), 64);
    Queue::new(options, ring, Identity, &DeviceId::new()).expect("a queue")
}

fn transmitter(machine: &mut Machine) -> Transmitter {
    let frames = machine.bytes(FRAME_LEN * usize::from(SIZE), 64);
    Transmitter::new(queue(machine), frames, 1)
}

#[test]
fn a_start_makes_no_descriptor_and_a_card_sends_after_every_reset() {
    let missing = || Command::new("ip").arg("-V").output().is_err();
    if !rustix::process::geteuid().is_root() || missing() || File::open("/dev/net/tun").is_err() {
        eprintln!("not tried: needs root, /dev/net/tun and the program ip");
        return;
    }
    let namespace = Namespace::create();
    namespace.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 || true");
    let tap = namespace.run(|| Tap::open(TAP, 1).expect("a TAP interface"));
    namespace.sh(&format!("ip link set {TAP} up"));
    let config = NetConfig {
        packets: Some(1_000_000),
        ..NetConfig::default()
    };
    let card = Net::new("net0", MacAddress(MAC), &config, Arc::new(tap)).expect("a card");
    let mut machine = Machine::new(card);
    let before = descriptors();
    let frame: Vec<u8> = [&[0xff; 6][..], &MAC, &[0x88, 0xb5], &[7; 100]].concat();
    for round in 1..=3_u64 {
        let mut transmitter = transmitter(&mut machine);
        // A queue pair without its receive queue: the transmit queue is number 1.
        let receive: Queue<u8> = queue(&mut machine);
        machine.start(VERSION_1, &[receive.areas(), transmitter.areas()]);
        assert_eq!(descriptors(), before, "while it runs");
        for _ in 0..2 {
            let mut piece = machine.lend(frame.len());
            piece.bytes_mut().copy_from_slice(&frame);
            let sent = transmitter.send(7, &Header::default(), vec![piece], drop);
            sent.expect("room");
        }
        let _ = transmitter.publish();
        machine.run();
        for _ in 0..2 {
            assert_eq!(transmitter.reap(drop).expect("answered"), Some(7));
        }
        machine.collect();
        machine.reset();
        let counter = format!("/sys/class/net/{TAP}/statistics/rx_packets");
        let script = format!("mount -t sysfs none /sys && cat {counter}");
        let output = Command::new("nsenter")
            .arg(format!("--net={}", namespace.path().display()))
            .args(["unshare", "-m", "sh", "-ec", &script])
            .output()
            .expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), (2 * round).to_string(), "frames: {output:?}");
        assert_eq!(descriptors(), before, "after the reset");
    }
}
