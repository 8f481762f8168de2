//! A stock guest in a machine of this process, through Splitring's library, for tests that the
//! command line does not allow.

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use splitring::config::{Bytes, DiskConfig, NetConfig, VmConfig};
use splitring::{Console, Machine, ResourceOptions, Resources};

use crate::assets::{Disk, Image, Kernel};

/// Time limit of every wait; software emulation is slow.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The serial port's output, for the test to search.
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

/// A running machine whose guest accepts typed lines. Its first disk is the root disk.
pub struct LibraryGuest {
    /// The machine.
    pub machine: Machine,
    output: Receiver<Vec<u8>>,
    seen: String,
    _root: Disk,
}

impl LibraryGuest {
    /// Boots a machine called `name` with these disks in addition to the root disk.
    pub fn boot(name: &str, disks: Vec<DiskConfig>) -> Self {
        Self::boot_with(name, disks, Resources::options())
    }

    /// Like [`LibraryGuest::boot`], with backends of the test's own for the disks that `own` names.
    pub fn boot_with(name: &str, disks: Vec<DiskConfig>, own: ResourceOptions) -> Self {
        Self::boot_all(name, disks, Vec::new(), own)
    }

    /// Boots a machine called `name` with these network devices.
    pub fn boot_nets(name: &str, nets: Vec<NetConfig>) -> Self {
        Self::boot_all(name, Vec::new(), nets, Resources::options())
    }

    /// Boots a machine with disks, and a configuration that `change` has changed.
    pub fn boot_changed(
        name: &str,
        disks: Vec<DiskConfig>,
        change: impl FnOnce(VmConfig) -> VmConfig,
    ) -> Self {
        Self::boot_machine(name, disks, Vec::new(), Resources::options(), change)
    }

    /// Boots a machine with disks, network devices and backends.
    pub fn boot_all(
        name: &str,
        disks: Vec<DiskConfig>,
        net: Vec<NetConfig>,
        own: ResourceOptions,
    ) -> Self {
        Self::boot_machine(name, disks, net, own, |config| config)
    }

    fn boot_machine(
        name: &str,
        disks: Vec<DiskConfig>,
        net: Vec<NetConfig>,
        own: ResourceOptions,
        change: impl FnOnce(VmConfig) -> VmConfig,
    ) -> Self {
        let (send, output) = channel();
        let kernel = Kernel::named("6.12-cloud");
        let root = Disk::copy_of("tools");
        let mut disk = vec![DiskConfig::new(root.path())];
        disk.extend(disks);
        let mut config = VmConfig::default()
            .name(name)
            .kernel(kernel.image(Image::Vmlinux))
            .initrd(kernel.initramfs())
            .cmdline("console=ttyS0 quiet session=typed root=/dev/vda")
            .memory(Bytes::mib(256));
        config.disk = disk;
        config.net = net;
        let config = change(config);
        let console = Console::writer(Lines(send)).expect("a console");
        let resources = own.console(console).open(&config);
        let machine = Machine::new(config, resources.expect("resources")).expect("a machine");
        machine.start().expect("it starts");
        let mut live = Self {
            machine,
            output,
            seen: String::new(),
            _root: root,
        };
        live.wait_for("@@ ready");
        live
    }

    /// Waits for `text` at the start of a line. Returns the output before it, and the rest of its
    /// line.
    pub fn wait_for(&mut self, text: &str) -> (String, String) {
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
            let left = TIMEOUT.saturating_sub(start.elapsed());
            let bytes = self.output.recv_timeout(left).unwrap_or_else(|_| {
                let end = self.machine.try_wait();
                panic!("no {text:?}; the machine: {end:?}; the console says\n{before}")
            });
            self.seen
                .push_str(&String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
    }

    /// Types a line without waiting.
    pub fn type_line(&self, line: &str) {
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

    /// Types a line. Returns its output and its exit status.
    pub fn run(&mut self, line: &str) -> (String, i32) {
        self.type_line(line);
        let (output, status) = self.wait_for("@@ ");
        (output, status.parse().expect("a status"))
    }

    /// Types a line, which must succeed. Returns its output.
    #[track_caller]
    pub fn succeed(&mut self, line: &str) -> String {
        let (output, status) = self.run(line);
        assert_eq!(status, 0, "`{line}`: {output}");
        output
    }

    /// Waits until a condition holds in the guest.
    #[track_caller]
    pub fn until(&mut self, condition: &str) {
        self.succeed(&format!(
            "n=0; until {condition}; do n=$((n+1)); [ $n -gt 300 ] && exit 1; sleep 0.2; done"
        ));
    }
}
