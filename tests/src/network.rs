//! Networks on the machine the tests run on: the programs for them come from the tools disk, which
//! is mounted, so nothing has to be installed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// The tools disk's file tree.
#[derive(Debug)]
pub struct Toolbox {
    mount: TempDir,
}

impl Toolbox {
    /// Mounts `image`, which nobody else must write to meanwhile.
    pub fn mount(image: &Path) -> Self {
        let mount = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let at = mount.path().display();
        // The programs want the machine's devices: /dev/net/tun.
        sh(&format!(
            "mount -o loop {} {at} && mount --bind /dev {at}/dev",
            image.display()
        ));
        Self { mount }
    }

    fn root(&self) -> PathBuf {
        self.mount.path().into()
    }

    /// Runs a line of the shell with the disk's programs on this machine's network; it must succeed.
    pub fn sh(&self, line: &str) {
        let status = self.command("/bin/sh").args(["-c", line]).status();
        let status = status.expect("chroot runs");
        assert!(status.success(), "`{line}` failed: {status}");
    }

    /// Starts a program of the disk's that goes on until it is killed.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        self.command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chroot runs")
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

/// A tap device with addresses; gone when dropped.
#[derive(Debug)]
pub struct Tap<'t> {
    tools: &'t Toolbox,
    name: String,
}

impl<'t> Tap<'t> {
    /// Makes the device, with `flags` of `ip tuntap` (`multi_queue`), and gives it `address` (with its prefix length).
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

/// Bytes that repeat only after a long while, the same each time.
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

/// Gives `bytes` to whoever connects to `address`, once.
pub fn serve(address: &str, bytes: Vec<u8>) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("an address of this machine");
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("the guest connects");
        peer.write_all(&bytes).expect("the guest reads on");
        finish(&peer);
    })
}

/// Takes everything from whoever connects to `address`, once.
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
