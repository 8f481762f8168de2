//! Networks on the machine that the tests run on. The programs for them are on the tools disk,
//! which is mounted, so that nothing has to be installed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

/// The mounted file tree of the tools disk.
#[derive(Debug)]
pub struct Toolbox {
    mount: TempDir,
}

impl Toolbox {
    /// Mounts `image`. Nothing else may write to it meanwhile.
    pub fn mount(image: &Path) -> Self {
        let mount = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let at = mount.path().display();
        // The programs need the machine's devices: /dev/net/tun.
        sh(&format!(
            "mount -o loop {} {at} && mount --bind /dev {at}/dev",
            image.display()
        ));
        Self { mount }
    }

    fn root(&self) -> PathBuf {
        self.mount.path().into()
    }

    /// Runs a shell line with the disk's programs in this machine's network; it must succeed.
    pub fn sh(&self, line: &str) {
        let status = self.command("/bin/sh").args(["-c", line]).status();
        let status = status.expect("chroot runs");
        assert!(status.success(), "`{line}` failed: {status}");
    }

    /// Starts a program of the disk that runs until it is dropped.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Daemon {
        let mut command = self.command(program);
        command.args(arguments);
        Daemon::start(command)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.root()).arg(program);
        command
    }
}

impl Drop for Toolbox {
    fn drop(&mut self) {
        // Best effort: in the lab everything ends with it.
        let at = self.mount.path().display();
        drop(
            Command::new("/bin/sh")
                .args(["-c", &format!("umount {at}/dev {at}")])
                .status(),
        );
    }
}

fn sh(line: &str) {
    let status = Command::new("/bin/sh")
        .args(["-c", line])
        .status()
        .expect("a shell");
    assert!(status.success(), "`{line}` failed: {status}");
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    /// Starts it, without output.
    pub fn start(mut command: Command) -> Self {
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(started.expect("the program is there"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A network namespace, which is deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    /// A process that keeps the namespace alive.
    holder: Daemon,
}

impl Namespace {
    /// Creates a namespace with nothing but a loopback interface, which is up.
    pub fn create(tools: &Toolbox) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let holder = Daemon::start(command);
        let namespace = Self { holder };
        let ours = std::fs::read_link("/proc/self/ns/net").expect("proc is mounted");
        while std::fs::read_link(namespace.path()).is_ok_and(|theirs| theirs == ours) {
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.sh(tools, "ip link set lo up");
        namespace
    }

    /// Returns the file that represents it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// Returns a process in it, by which `ip` identifies it.
    pub fn pid(&self) -> u32 {
        self.holder.0.id()
    }

    /// Like [`Toolbox::sh`], in this namespace.
    pub fn sh(&self, tools: &Toolbox, line: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.arg("chroot").arg(tools.root());
        let status = command.args(["/bin/sh", "-c", line]).status();
        let status = status.expect("nsenter runs");
        assert!(status.success(), "`{line}` failed: {status}");
    }

    /// Runs `work` in this namespace. The sockets that it opens and the threads that it starts stay
    /// there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.path()).expect("it is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(file.as_fd(), kind).expect("we are root");
                work()
            });
            inside.join().expect("what runs inside succeeds")
        })
    }

    /// Connects it to `other` with a veth pair: `(name, addresses)` of the interface at either end.
    pub fn connect(
        &self,
        tools: &Toolbox,
        near: (&str, &[&str]),
        other: &Self,
        far: (&str, &[&str]),
    ) {
        tools.sh(&format!(
            "ip link add {} netns {} type veth peer name {} netns {}",
            near.0,
            self.pid(),
            far.0,
            other.pid()
        ));
        for (host, (name, addresses)) in [(self, near), (other, far)] {
            host.sh(tools, &format!("ip link set {name} up"));
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                host.sh(tools, &format!("ip addr add {address} dev {name} {nodad}"));
            }
        }
    }
}

/// A TAP device with addresses, which is deleted on drop.
#[derive(Debug)]
pub struct Tap<'t> {
    tools: &'t Toolbox,
    name: String,
}

impl<'t> Tap<'t> {
    /// Creates the device, with `flags` of `ip tuntap` (`multi_queue`), and gives it `address`
    /// (with its prefix length).
    pub fn create(tools: &'t Toolbox, name: &str, flags: &str, address: &str) -> Self {
        tools.sh(&format!(
            "ip tuntap add {name} mode tap {flags} && ip addr add {address} dev {name} && ip link set {name} up"
        ));
        Self {
            tools,
            name: name.to_owned(),
        }
    }

    /// Sets the device's MTU.
    pub fn set_mtu(&self, mtu: u32) {
        self.tools
            .sh(&format!("ip link set {} mtu {mtu}", self.name));
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        drop(
            self.tools
                .command("/bin/sh")
                .args(["-c", &format!("ip link del {}", self.name)])
                .status(),
        );
    }
}

/// Returns pseudo-random bytes, the same each time.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Sends `bytes` to the first client that connects to `address`.
pub fn serve(address: &str, bytes: Vec<u8>) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("an address of this machine");
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("the guest connects");
        peer.write_all(&bytes).expect("the guest reads on");
        finish(&peer);
    })
}

/// Returns everything that the first client that connects to `address` sends.
pub fn collect(address: &str) -> JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind(address).expect("an address of this machine");
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("the guest connects");
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).expect("the guest sends on");
        bytes
    })
}

fn finish(peer: &TcpStream) {
    peer.shutdown(std::net::Shutdown::Write)
        .expect("an open connection");
}
