//! The network device on a real TAP interface, in a separate network namespace, driven in this
//! process. The only test in its process, so that it can count descriptors. Tier: quick; needs root
//! and `ip`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use splitring_devices::net::tap::Tap;
use splitring_devices::net::{MacAddress, Net, NetConfig};
use splitring_needs::{self as needs, Capability};
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::net::{FRAME_LEN, ReceiveMode, Receiver, Transmitter};
use splitring_virtio::driver::{DeviceId, Identity, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::VERSION_1;
use splitring_virtio::spec::net::{Header, feature};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SIZE: u16 = 64;
const TAP: &str = "t0";

/// A network namespace, which is deleted on drop.
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

    /// Returns the number of frames that the device has sent.
    fn sent(&self) -> u64 {
        let script =
            format!("mount -t sysfs none /sys && cat /sys/class/net/{TAP}/statistics/rx_packets");
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["unshare", "-m", "sh", "-ec", &script])
            .output()
            .expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().expect("a number")
    }

    /// Runs `work` on a thread in the namespace.
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

/// Returns the descriptors of this process with their targets.
fn descriptors() -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").expect("list descriptors");
    let each = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        // The directory that is being read is not counted.
        (!target.starts_with("/proc")).then_some((number, target))
    });
    each.collect()
}

fn queue<P>(machine: &mut TestMachine) -> Queue<P> {
    let options = QueueOptions::new(SIZE, VERSION_1).tables(SIZE);
    let ring = machine.bytes(options.memory_len(), 64);
    Queue::new(options, ring, Identity, &DeviceId::new()).expect("a queue")
}

fn transmitter(machine: &mut TestMachine) -> Transmitter {
    let frames = machine.bytes(FRAME_LEN * usize::from(SIZE), 64);
    Transmitter::new(queue(machine), frames, 1)
}

fn receiver(machine: &mut TestMachine) -> Receiver {
    let frames = machine.bytes(FRAME_LEN * usize::from(SIZE), 64);
    let mut receiver = Receiver::new(queue(machine), frames, ReceiveMode::Small);
    for _ in 0..SIZE / 2 {
        let list = ScatterList::from_buffers(vec![machine.bytes(1530, 1)]);
        receiver.add(list).map_err(|(_, why)| why).expect("room");
    }
    receiver
}

/// Sends two frames, and waits for the replies.
fn send(machine: &mut TestMachine, transmitter: &mut Transmitter) {
    let frame = [&[0xff; 6][..], &MAC, &[0x88, 0xb5], &[7; 100]].concat();
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
}

/// Returns the last byte of each received frame.
fn received(machine: &mut TestMachine, receiver: &mut Receiver) -> Vec<u8> {
    machine.run();
    let mut bytes = [0; 2048];
    let next = || {
        let mut packet = receiver.receive().expect("no broken ring")?;
        let len = packet.copy_to(&mut bytes);
        Some(bytes[len - 1])
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_start_opens_no_descriptor_and_the_device_works_after_every_reset() {
    let privileges = [Capability::SysAdmin, Capability::NetAdmin];
    if !needs::capabilities(&privileges) || !needs::program("ip", "iproute2") || !needs::tun() {
        return;
    }
    let namespace = Namespace::create();
    namespace.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 || true");
    let tap = namespace.run(|| Tap::open(TAP, 1).expect("a TAP interface"));
    // There are two host addresses: the device's, and another one, whose frames are foreign to the
    // device.
    namespace.sh(&format!(
        "ip addr add 10.9.0.1/24 dev {TAP}; ip link set {TAP} up; ip route flush table local type broadcast; \
         ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 dev {TAP} nud permanent; \
         ip neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev {TAP} nud permanent"
    ));
    let socket = namespace.run(|| UdpSocket::bind("10.9.0.1:0").expect("a socket"));
    let config = NetConfig::default().packets(1_000_000);
    let card = Net::new("net0", MacAddress(MAC), &config, Arc::new(tap));
    let card = Arc::new(card);
    let mut machine = TestMachine::of(card.clone());
    let before = descriptors();
    // A driver that filters, one that receives every frame, and one that filters again.
    for (features, round) in [
        (feature::CTRL_VQ | feature::CTRL_RX, 1),
        (0, 2),
        (feature::CTRL_VQ | feature::CTRL_RX, 3),
    ] {
        let features = features | VERSION_1;
        let mut receiver = receiver(&mut machine);
        let mut transmitter = transmitter(&mut machine);
        let control: Queue<u8> = queue(&mut machine);
        let areas = [receiver.areas(), transmitter.areas(), control.areas()];
        machine.start(
            features,
            &areas[..if features == VERSION_1 { 2 } else { 3 }],
        );
        let _ = receiver.publish();
        assert_eq!(descriptors(), before, "while it runs");
        send(&mut machine, &mut transmitter);
        assert_eq!(namespace.sent(), 2 * round, "frames from the guest");
        let from_host = |to: &str, mark: u8| {
            socket.send_to(&[mark; 100], to).expect("sent");
        };
        from_host("10.9.0.2:9", 1);
        from_host("10.9.0.3:9", 2);
        from_host("10.9.0.2:9", 3);
        let expected = if features == VERSION_1 {
            vec![1, 2, 3]
        } else {
            vec![1, 3]
        };
        assert_eq!(received(&mut machine, &mut receiver), expected);
        card.set_link(false);
        from_host("10.9.0.2:9", 4);
        assert!(received(&mut machine, &mut receiver).is_empty());
        card.set_link(true);
        from_host("10.9.0.2:9", 5);
        assert_eq!(received(&mut machine, &mut receiver), [5]);
        machine.reset();
        assert_eq!(descriptors(), before, "after the reset");
    }
}
