//! An ordinary user's network through passt, to a host in a namespace: IPv4, IPv6, names, forwarded
//! ports.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};
use splitring_tests::network::{Daemon, Namespace, collect, content, serve};
use splitring_tests::resolver::{self, Answers};
use splitring_tests::user::User;

use crate::net::endpoints::{Host, check_log};

/// The user's host; its gateway, which passt maps to the host itself; and a host behind the
/// gateway.
const NEAR4: &str = "192.0.2.2";
const NEAR6: &str = "2001:db8::2";
const GATE4: &str = "192.0.2.1";
const GATE6: &str = "2001:db8::1";
const FAR4: &str = "198.51.100.1";
const FAR6: &str = "2001:db8:1::1";
const NAME: &str = "far.test";
/// The forwarded port of the user's host, and the guest's port.
const FORWARDED: (u16, u16) = (2222, 22);
const PORT: u16 = 5000;
const TRANSFER: usize = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Creates a FIFO that is never closed and has no data. To a guest that has shut down its own
/// direction, Debian 12's passt sends the first bytes repeatedly, because it no longer accepts
/// acknowledgements.
const STILL_OPEN: &str = "[ -p /tmp/open ] || mkfifo /tmp/open;";

/// Writes a script for the DHCP client; typed lines are one line each.
const LEASE: &str = "printf '%s\\n' '#!/bin/busybox sh' '[ $1 = bound ] || exit 0' \
    'ip addr add $ip/$mask dev $interface' 'ip route add default via $router' \
    'for server in $dns; do echo nameserver $server; done >/etc/resolv.conf' >/tmp/lease && chmod +x /tmp/lease";

/// The two hosts, and the user on one of them.
struct PasstNetwork {
    user: User,
    near: Namespace,
    far: Namespace,
    _host: Host,
}

impl PasstNetwork {
    fn new() -> Option<Self> {
        let host = Host::new()?;
        let tools = &host.tools;
        let (near, far) = (Namespace::create(tools), Namespace::create(tools));
        let prefixed = |v4: &str, v6: &str| [format!("{v4}/24"), format!("{v6}/64")];
        let (here, there) = (prefixed(NEAR4, NEAR6), prefixed(GATE4, GATE6));
        near.connect(
            tools,
            ("up0", &[&here[0], &here[1]]),
            &far,
            ("down0", &[&there[0], &there[1]]),
        );
        near.sh(
            tools,
            &format!("ip route add default via {GATE4} && ip -6 route add default via {GATE6}"),
        );
        far.sh(
            tools,
            &format!("ip addr add {FAR4}/32 dev lo && ip addr add {FAR6}/128 dev lo nodad"),
        );
        // passt pings with sockets that ordinary users may open only with this kernel setting.
        near.run(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"))
            .expect("we are root");
        let answers = Answers {
            name: NAME,
            v4: FAR4.parse::<Ipv4Addr>().expect("an address"),
            v6: FAR6.parse::<Ipv6Addr>().expect("an address"),
        };
        far.run(|| resolver::serve(FAR4, answers));
        let user = User::new();
        user.name_servers(&[FAR4]);
        Some(Self {
            user,
            near,
            far,
            _host: host,
        })
    }

    fn boot(&self, root: &Disk, net: &str) -> Guest {
        self.user.own(root);
        let kernel = Kernel::named("6.12-cloud");
        let mut guest = Launch::new(&kernel, Image::Vmlinux)
            .by(&self.user, &self.near.path())
            .root_disk(root.path())
            .option("--net", net)
            .boot();
        guest.succeed(LEASE);
        guest.succeed("ip link set eth0 up && busybox udhcpc -q -n -t 20 -i eth0 -s /tmp/lease");
        guest.succeed(
            "(n=0; until /usr/bin/ip -6 addr show dev eth0 scope global | grep -v tentative | grep -q inet6; \
             do n=$((n+1)); [ $n -gt 60 ] && exit 1; sleep 1; done)",
        );
        guest
    }

    /// Transfers the same bytes in both directions between the guest and the far host, by name or
    /// address.
    fn transfer(&self, guest: &mut Guest, address: &str, peer: &str) {
        let at = if address.contains(':') {
            format!("[{address}]:{PORT}")
        } else {
            format!("{address}:{PORT}")
        };
        let bytes = content(TRANSFER);
        let server = self.far.run(|| serve(&at, bytes.clone()));
        guest.succeed(&format!(
            "{STILL_OPEN} busybox nc {peer} {PORT} <>/tmp/open >/tmp/blob"
        ));
        server.join().expect("all was sent");
        let back = self.far.run(|| collect(&at));
        guest.succeed(&format!("busybox nc {peer} {PORT} </tmp/blob"));
        assert!(back.join().expect("all came back") == bytes, "to {peer}");
    }

    /// Sends a line to the guest's port, and its answer back, from the far host through the user's.
    fn forwarded_tcp(&self, guest: &mut Guest) {
        let (host, inside) = FORWARDED;
        guest.succeed(&format!(
            "printf '%s\\n' '#!/bin/busybox sh' 'read -r line; echo $line >/tmp/heard; echo hello from the guest' \
             >/tmp/answer && chmod +x /tmp/answer && (busybox nc -l -p {inside} -e /tmp/answer >/dev/null 2>&1 &)"
        ));
        let heard = self.far.run(|| {
            let start = Instant::now();
            loop {
                // passt accepts the connection before the guest does, and drops it if nothing
                // listens there yet.
                let mut text = String::new();
                let asked = TcpStream::connect((NEAR4, host)).and_then(|mut stream| {
                    stream.write_all(b"hello from afar\n")?;
                    stream.shutdown(std::net::Shutdown::Write)?;
                    stream.read_to_string(&mut text)
                });
                if asked.is_ok() && !text.is_empty() {
                    return text;
                }
                assert!(start.elapsed() < TIMEOUT, "no answer: {asked:?}");
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        assert_eq!(heard, "hello from the guest\n");
        assert_eq!(guest.succeed("cat /tmp/heard"), "hello from afar\n");
    }

    /// Sends datagrams to the guest's port, which returns them.
    fn forwarded_udp(&self, guest: &mut Guest) {
        let (host, inside) = FORWARDED;
        guest.succeed(&format!(
            "(perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => \"udp\", LocalPort => {inside}) or die; \
             while (defined(my $from = $s->recv($_, 100))) {{ $s->send(\"echo $_\", 0, $from) }}' >/dev/null 2>&1 &)"
        ));
        self.far.run(|| {
            let socket = UdpSocket::bind((FAR4, 0)).expect("an address of this host");
            socket.connect((NEAR4, host)).expect("a route");
            let pause = Some(Duration::from_millis(500));
            socket.set_read_timeout(pause).expect("a socket");
            let start = Instant::now();
            let mut answer = [0; 100];
            loop {
                assert!(start.elapsed() < TIMEOUT, "no answer by UDP");
                // A refusal is reported as an error of the next call.
                if socket.send(b"one").is_ok()
                    && let Ok(len) = socket.recv(&mut answer)
                {
                    break assert_eq!(&answer[..len], b"echo one");
                }
            }
        });
    }
}

fn start_passt(network: &PasstNetwork, socket: &Path) -> Daemon {
    let mut words = network.user.prefix(&network.near.path());
    let (host, inside) = FORWARDED;
    words.extend(
        ["passt", "--foreground", "--quiet", "--socket"]
            .iter()
            .map(std::ffi::OsString::from),
    );
    words.push(socket.into());
    words.extend(["-t".into(), format!("{host}:{inside}").into()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let passt = Daemon::start(command);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < TIMEOUT, "passt made no socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    passt
}

/// Returns the passt processes. passt's process name depends on the CPU; the test's own starts with
/// the same word.
fn passts() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("proc is mounted");
    let names =
        entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok());
    let is_passt = |name: &String| matches!(name.trim(), "passt" | "passt.avx2");
    names.filter(is_passt).collect()
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn passt_started_by_splitring_gives_an_ordinary_user_full_networking() {
        let Some(network) = PasstNetwork::new() else {
            return;
        };
        let root = Disk::copy_of("tools");
        let (host, inside) = FORWARDED;
        let net = format!("passt,tcp={host}:{inside},udp={host}:{inside}");
        let mut guest = network.boot(&root, &net);
        assert!(
            guest.succeed("busybox id -u").starts_with('0'),
            "in the guest one is root"
        );
        guest.succeed(&format!("/usr/bin/ping -q -c 2 -w 30 {FAR4}"));
        network.transfer(&mut guest, FAR4, FAR4);
        network.transfer(&mut guest, FAR6, FAR6);
        let names = guest.succeed(&format!("getent ahostsv4 {NAME}; getent ahostsv6 {NAME}"));
        assert!(names.contains(FAR4) && names.contains(FAR6), "{names}");
        assert_ne!(
            guest.run("getent hosts near.test").status,
            0,
            "a name nobody has"
        );
        // Whichever of its addresses the guest chooses.
        network.transfer(&mut guest, "::", NAME);
        network.forwarded_tcp(&mut guest);
        network.forwarded_udp(&mut guest);
        check_log(&mut guest);
        assert_eq!(passts().len(), 1);
        guest.power_off();
        assert!(passts().is_empty(), "passt outlives the machine");
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn a_running_passt_is_used_by_its_socket() {
        let Some(network) = PasstNetwork::new() else {
            return;
        };
        let socket = network.user.path("passt.socket");
        let _passt = start_passt(&network, &socket);
        let root = Disk::copy_of("tools");
        let mut guest = network.boot(&root, &format!("passt,socket={}", socket.display()));
        network.transfer(&mut guest, FAR4, FAR4);
        network.transfer(&mut guest, FAR6, FAR6);
        network.forwarded_tcp(&mut guest);
        // The driver restarts the device: neither direction of the stream loses its position.
        guest.succeed("ip link set eth0 down && ip link set eth0 up");
        guest.succeed(
            "cd /sys/bus/virtio/drivers/virtio_net && for d in virtio*; do echo $d >unbind && echo $d >bind; done; cd /root",
        );
        guest.succeed("ip link set eth0 up && busybox udhcpc -q -n -t 20 -i eth0 -s /tmp/lease");
        network.transfer(&mut guest, FAR4, FAR4);
        check_log(&mut guest);
        guest.power_off();
    }
}
