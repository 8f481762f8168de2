//! The two ends of a test's network.

use std::fs;
use std::thread::JoinHandle;

use splitring_needs as needs;
use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::dmesg;
use splitring_tests::guest::{Guest, Launch};
use splitring_tests::network::{Tap, Toolbox, collect, content, serve};

/// Full paths, because the guest's shell has simpler ones built in.
pub(crate) const IP: &str = "/usr/bin/ip";
pub(crate) const PING: &str = "/usr/bin/ping";

/// The programs of the host's end. Every test has its own, so that tests can run at the same time.
pub(crate) struct Host {
    pub(crate) tools: Toolbox,
    _disk: Disk,
}

impl Host {
    /// Returns `None`, and records a skipped test, if no networks can be created.
    pub(crate) fn new() -> Option<Self> {
        if !needs::networks() || !needs::block_devices() {
            return None;
        }
        let disk = Disk::copy_of("tools");
        Some(Self {
            tools: Toolbox::mount(disk.path()),
            _disk: disk,
        })
    }
}

/// Names and addresses of one test's network.
pub(crate) struct Net {
    pub(crate) tap: String,
    pub(crate) host: String,
    pub(crate) guest: String,
    pub(crate) port: u16,
}

impl Net {
    pub(crate) fn number(number: u8) -> Self {
        Self {
            tap: format!("spltest{number}"),
            host: format!("10.77.{number}.1"),
            guest: format!("10.77.{number}.2"),
            port: 5000 + u16::from(number),
        }
    }

    /// Creates the TAP device, with `flags` of `ip tuntap`.
    pub(crate) fn tap<'h>(&self, host: &'h Host, flags: &str) -> Tap<'h> {
        Tap::create(&host.tools, &self.tap, flags, &format!("{}/24", self.host))
    }

    /// Boots a guest with tools and this network device, and configures its address.
    pub(crate) fn boot(&self, root: &Disk, cpus: u32, keys: &str) -> Guest {
        let kernel = Kernel::named("6.12-cloud");
        let launch = Launch::new(&kernel, Image::Vmlinux)
            .cpus(cpus)
            .root_disk(root.path());
        self.boot_as(launch, keys)
    }

    /// Like [`Net::boot`], with another configuration of the guest.
    pub(crate) fn boot_as(&self, launch: Launch, keys: &str) -> Guest {
        let mut guest = launch
            .option("--net", format!("tap={}{keys}", self.tap))
            .boot();
        guest.succeed(&self.set_up());
        guest
    }

    /// Runs `play` with a guest on this network, whose network device has `keys`. The guest's log
    /// must have no unexpected message.
    pub(crate) fn with_guest(
        &self,
        cpus: u32,
        keys: &str,
        play: impl FnOnce(&mut Guest, &Tap, &Host),
    ) {
        let Some(host) = Host::new() else { return };
        let flags = if keys.contains("queues=") {
            "multi_queue"
        } else {
            ""
        };
        let tap = self.tap(&host, flags);
        let root = Disk::copy_of("tools");
        let mut guest = self.boot(&root, cpus, keys);
        play(&mut guest, &tap, &host);
        check_log(&mut guest);
        guest.power_off();
    }

    /// Returns the line that configures the guest's address and waits for the host.
    pub(crate) fn set_up(&self) -> String {
        format!(
            "ip addr add {}/24 dev eth0 && ip link set eth0 up && ping -q -c 2 -w 60 {}",
            self.guest, self.host
        )
    }

    /// Sends `bytes` bytes to the guest; the returned line stores them in `/tmp/blob`.
    pub(crate) fn give(&self, bytes: usize) -> (JoinHandle<()>, String) {
        let server = serve(&format!("{}:{}", self.host, self.port), content(bytes));
        let line = format!(
            "busybox nc {} {} </dev/null >/tmp/blob",
            self.host, self.port
        );
        (server, line)
    }

    /// Receives what the returned line sends.
    pub(crate) fn take(&self) -> (JoinHandle<Vec<u8>>, String) {
        let back = collect(&format!("{}:{}", self.host, self.port));
        let line = format!("busybox nc {} {} </tmp/blob", self.host, self.port);
        (back, line)
    }

    /// Transfers the same bytes in both directions over TCP and compares them.
    pub(crate) fn transfer(&self, guest: &mut Guest) {
        self.transfer_under(guest, 8 << 20, "");
    }

    /// Transfers `bytes` bytes in each direction while the guest does `meanwhile`.
    #[track_caller]
    pub(crate) fn transfer_under(&self, guest: &mut Guest, bytes: usize, meanwhile: &str) {
        let under = |line: &str| format!("{{ {line}; }} & load=$!; ({meanwhile} :) && wait $load");
        let (server, line) = self.give(bytes);
        guest.succeed(&under(&line));
        server.join().expect("all was sent");
        let (back, line) = self.take();
        guest.succeed(&under(&line));
        assert!(
            back.join().expect("all came back") == content(bytes),
            "the bytes are not the ones that were sent"
        );
    }

    /// Returns a counter of the TAP device from sysfs.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/{name}", self.tap);
        let text = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
        text.trim().parse().expect("a number")
    }
}

pub(crate) fn check_log(guest: &mut Guest) {
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(
        unexpected.is_empty(),
        "unexpected kernel messages:\n{}",
        unexpected.join("\n")
    );
}
