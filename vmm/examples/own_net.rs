//! A custom network backend: a cable between two machines, each frame one datagram.
//!
//! `cargo run --example own_net -- KERNEL`; a last argument `any-kvm` also allows a KVM without
//! hardware virtualisation.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use splitring::config::NetConfig;
use splitring::net::{FramePort, GuestBuffers, HEADER_SIZE, Header, NetBackend};
use splitring::{Machine, Resources, VmConfig};

/// Size of the longest frame with its header.
const ROOM: usize = HEADER_SIZE + (64 << 10) + 64;

/// One end of the cable.
struct End(UnixDatagram);

impl NetBackend for End {
    fn open_port(&self, _: u16) -> io::Result<Box<dyn FramePort>> {
        self.0.set_nonblocking(true)?;
        Ok(Box::new(Port {
            socket: self.0.try_clone()?,
            buffer: vec![0; ROOM],
            rest: 0..0,
        }))
    }
}

/// One end of the cable in use by one thread.
struct Port {
    socket: UnixDatagram,
    /// A header of zeroes, which requires no offload by the guest, and the last frame.
    buffer: Vec<u8>,
    rest: std::ops::Range<usize>,
}

impl FramePort for Port {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>> {
        let len = match self.socket.recv(&mut self.buffer[HEADER_SIZE..]) {
            Ok(len) => HEADER_SIZE + len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        into.store(&[&self.buffer[..len]]);
        self.rest = into.len().min(len)..len;
        Ok(Some(len as u64))
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.rest.clone()]
    }

    fn send(&mut self, _: &Header, frame: GuestBuffers<'_>) -> io::Result<bool> {
        let mut bytes = vec![0; frame.len()];
        frame.fetch(&mut bytes);
        match self.socket.send(&bytes) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("usage: own_net KERNEL [any-kvm]")?;
    let any_kvm = args.next().is_some();

    let (left, right) = UnixDatagram::pair()?;
    let mut machines = Vec::new();
    for (name, end) in [("left", left), ("right", right)] {
        let config = VmConfig::new(&kernel)
            .name(name)
            .net(NetConfig::handed_over().id("cable"));
        let resources = Resources::options()
            .net("cable", Arc::new(End(end)))
            .any_kvm(any_kvm)
            .open(&config)?;
        let machine = Machine::new(config, resources)?;
        machine.start()?;
        machines.push((name, machine));
    }
    for (name, machine) in &machines {
        let reason = machine.wait();
        let frames = machine.nets()[0]
            .totals()
            .map_or(0, |totals| totals.sent.frames);
        println!("{name} ended: {reason}; {frames} frames sent");
    }
    Ok(())
}
