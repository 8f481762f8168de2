//! SCSI disks that come, go and change size under a running stock guest, and machines that share one: with Splitring
//! as a library in this process.
//!
//! Run by `cargo xtask test`, which knows where a stock kernel can run.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use splitring::config::{DiskConfig, VmConfig};
use splitring::{Console, Machine, MachineHandle};
use splitring_devices::disk::config::Bus;
use splitring_tests::assets::{Disk, Image, Kernel};

/// Bounds every wait; software emulation is slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// The serial port's output, to be searched by the test.
struct Lines(Sender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The test may have ended already.
        drop(self.0.send(bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A running machine whose guest takes typed lines.
struct Live {
    machine: MachineHandle,
    output: Receiver<Vec<u8>>,
    seen: String,
    _root: Disk,
}

impl Live {
    fn boot(name: &str, disks: Vec<DiskConfig>) -> Self {
        let (send, output) = channel();
        let kernel = Kernel::named("6.12-cloud");
        let root = Disk::copy_of("tools");
        let mut disk = vec![DiskConfig::new(root.path())];
        disk.extend(disks);
        let mut config = VmConfig {
            name: Some(name.into()),
            kernel: Some(kernel.image(Image::Vmlinux)),
            initrd: Some(kernel.initramfs()),
            cmdline: Some("console=ttyS0 quiet session=typed root=/dev/vda".into()),
            disk,
            ..VmConfig::default()
        };
        config.memory.size.0 = 256 << 20;
        let built = Machine::build(config, Console::new(Lines(send))).expect("a machine");
        let mut live = Self {
            machine: built.start().expect("it starts"),
            output,
            seen: String::new(),
            _root: root,
        };
        live.wait_for("@@ ready");
        live
    }

    /// Waits for `text` at the start of a line; returns what came before it, and the rest of its line.
    fn wait_for(&mut self, text: &str) -> (String, String) {
        let start = Instant::now();
        let mut before = String::new();
        loop {
            while let Some(end) = self.seen.find('\n') {
                let line: String = self.seen.drain(..=end).collect();
                if let Some(rest) = line.strip_prefix(text) {
                    return (before, rest.trim().to_owned());
                }
                before.push_str(&line);
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            let bytes = self.output.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| panic!("no {text:?}; the console says\n{before}"));
            self.seen
                .push_str(&String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
    }

    fn type_line(&self, line: &str) {
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let taken = self.machine.input(rest);
            rest = &rest[taken..];
            if taken == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Types a line; returns what it printed and its exit status.
    fn run(&mut self, line: &str) -> (String, i32) {
        self.type_line(line);
        let (output, status) = self.wait_for("@@ ");
        (output, status.parse().expect("a status"))
    }

    #[track_caller]
    fn succeed(&mut self, line: &str) -> String {
        let (output, status) = self.run(line);
        assert_eq!(status, 0, "`{line}`: {output}");
        output
    }

    /// Waits until a condition holds in the guest.
    #[track_caller]
    fn until(&mut self, condition: &str) {
        self.succeed(&format!(
            "n=0; until {condition}; do n=$((n+1)); [ $n -gt 300 ] && exit 1; sleep 0.2; done"
        ));
    }
}

fn scsi(path: &Path) -> DiskConfig {
    DiskConfig {
        bus: Bus::Scsi,
        ..DiskConfig::new(path)
    }
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_disks_come_grow_and_go_under_load_without_a_rescan() {
    let (first, second) = (Disk::empty(64 << 20), Disk::empty(64 << 20));
    let mut live = Live::boot("live", vec![scsi(first.path())]);
    let controller = live.machine.scsi().remove(0);
    for round in 0..2 {
        let size = 64 << 20;
        std::fs::File::options()
            .write(true)
            .open(second.path())
            .and_then(|file| file.set_len(size))
            .expect("resized");
        controller
            .add_disk("second", &scsi(second.path()))
            .expect("added");
        live.until("[ -b /dev/sdb ]");
        live.succeed(
            "(fio --name=load --filename=/dev/sdb --size=32M --rw=randrw --direct=1 --ioengine=libaio --iodepth=8 \
             --time_based --runtime=600 >/tmp/fio 2>&1 &) ; sleep 1",
        );
        std::fs::File::options()
            .write(true)
            .open(second.path())
            .and_then(|file| file.set_len(2 * size))
            .expect("grown");
        assert_eq!(controller.resize("second").expect("resized"), 2 * size);
        live.until(&format!(
            "[ $(cat /sys/block/sdb/size) = {} ]",
            2 * size / 512
        ));
        controller.remove("second").expect("removed");
        live.until("[ ! -e /sys/block/sdb ]");
        live.succeed("killall fio 2>/dev/null; sleep 1; true");
        // Its image is nobody's any more, and the other disk has not noticed.
        let alone = std::fs::File::options()
            .write(true)
            .open(second.path())
            .expect("opened");
        alone.set_len(size).expect("free");
        live.succeed("dd if=/dev/sda of=/dev/null bs=1M count=8 iflag=direct");
        println!("round {round} done");
    }
    live.machine.stop();
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_two_machines_share_an_image_under_reservations() {
    let disk = Disk::empty(64 << 20);
    let shared = DiskConfig {
        share: true,
        ..scsi(disk.path())
    };
    let mut first = Live::boot("first", vec![shared.clone()]);
    let mut second = Live::boot("second", vec![shared]);
    let write = "dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct";
    let read = "dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct";
    first.succeed("sg_persist --out --register --param-sark=a1 /dev/sda");
    second.succeed("sg_persist --out --register --param-sark=b2 /dev/sda");
    assert!(
        second
            .succeed("sg_persist --in --read-keys /dev/sda")
            .contains("0xa1")
    );
    first.succeed("sg_persist --out --reserve --param-rk=a1 --prout-type=5 /dev/sda");
    for machine in [&mut first, &mut second] {
        machine.succeed(write);
    }
    second.succeed("sg_persist --out --register --param-rk=b2 --param-sark=0 /dev/sda");
    second.succeed(read);
    assert_ne!(second.run(write).1, 0, "no registrant any more");
    second.succeed("sg_persist --out --register --param-sark=b3 /dev/sda");
    second.succeed(
        "sg_persist --out --preempt-abort --param-rk=b3 --param-sark=a1 --prout-type=3 /dev/sda",
    );
    first.succeed("sg_turs /dev/sda; true");
    assert_ne!(first.run(read).1, 0, "fenced");
    second.succeed(write);
    first.machine.stop();
    second.machine.stop();
}
