//! Tests of the network device, against a peer that returns every frame: each receive mode, headers
//! and data in separate lists, batches.

use alloc::format;
use alloc::vec::Vec;

use splitring_virtio::driver::DmaBytes;
use splitring_virtio::driver::net::{BIG_LEN, FRAME_LEN, ReceiveMode, Receiver, Transmitter};
use splitring_virtio::driver::pci::Pci;
use splitring_virtio::spec::net::{HEADER_SIZE, Header, feature};
use zerocopy::FromZeros;

use crate::device::{Device, Variant};
use crate::machine::Function;
use crate::suite::{Load, Pattern, Suite, TestError, Wait, bytes, poll_until};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const DEPTH: usize = 32;
const MAC_LEN: usize = 6;
const MIN_FRAME: usize = 60;
const MAX_FRAME: usize = 1514;
/// Maximum number of pieces of a packet.
const PIECES: usize = 8;
/// The EtherType for local experiments (IEEE 802), which nothing else uses.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// A network device with its first queue pair.
struct NetDevice {
    device: Device,
    receiver: Receiver,
    transmitter: Transmitter,
    mac: [u8; MAC_LEN],
    wait: Wait,
}

impl NetDevice {
    fn open(
        pci: Pci<Function>,
        variant: Variant,
        mode: ReceiveMode,
        wait: Wait,
    ) -> Result<Self, TestError> {
        let merge = if mode == ReceiveMode::Mergeable {
            feature::MRG_RXBUF
        } else {
            0
        };
        let mut device = Device::negotiate(pci, variant, feature::MAC | merge)?;
        let mut mac = [0; MAC_LEN];
        device.config(&mut mac)?;
        let receive = device.queue(RECEIVE)?;
        let transmit = device.queue(TRANSMIT)?;
        let (buffers, sizes): (usize, &[usize]) = match mode {
            ReceiveMode::Small => (2 * DEPTH, &[1530]),
            ReceiveMode::Big => (DEPTH, &[4096, BIG_LEN as usize - 4096]),
            ReceiveMode::Mergeable => (3 * DEPTH, &[HEADER_SIZE + 500]),
        };
        let mut receiver = Receiver::new(receive, bytes(FRAME_LEN * buffers)?, mode);
        for _ in 0..buffers {
            let list = Pattern(0).list(sizes)?;
            receiver
                .add(list)
                .map_err(|(_, why)| TestError::text(why))?;
        }
        let mut transmitter = Transmitter::new(transmit, bytes(FRAME_LEN * 2 * DEPTH)?, PIECES);
        receiver.disable_interrupts();
        transmitter.disable_interrupts();
        device.enable(RECEIVE, receiver.areas(), wait)?;
        device.enable(TRANSMIT, transmitter.areas(), Wait::Poll)?;
        device.set_driver_ok();
        let mut device = Self {
            device,
            receiver,
            transmitter,
            mac,
            wait,
        };
        device.refill()?;
        Ok(device)
    }

    fn refill(&mut self) -> Result<(), TestError> {
        self.receiver.refill().map_err(TestError::text)?;
        let kick = self.receiver.publish();
        self.device.kick(RECEIVE, kick);
        Ok(())
    }

    /// Returns a frame of `len` bytes to the device's own address, split into `cuts` pieces.
    fn frame(&self, tag: u64, len: usize, cuts: usize) -> Result<Vec<DmaBytes>, TestError> {
        let mut whole = Vec::with_capacity(len);
        whole.extend_from_slice(&self.mac);
        whole.extend_from_slice(&self.mac);
        whole.extend_from_slice(&ETHERTYPE);
        whole.extend_from_slice(&tag.to_le_bytes());
        let start = whole.len();
        whole.resize(len, 0);
        Pattern(tag + 1).fill(&mut whole[start..], start);
        let mut pieces = Vec::with_capacity(cuts);
        for part in whole.chunks(len.div_ceil(cuts)) {
            let mut piece = bytes(part.len())?;
            piece.bytes_mut().copy_from_slice(part);
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn send(&mut self, tag: u64, pieces: Vec<DmaBytes>) -> Result<(), TestError> {
        let header = Header::new_zeroed();
        self.transmitter
            .send(tag, &header, pieces, drop)
            .map_err(TestError::text)
    }

    fn push(&mut self) {
        let kick = self.transmitter.publish();
        self.device.kick(TRANSMIT, kick);
    }

    /// Waits for one packet, copies it, and returns its length and tag.
    fn receive(&mut self, into: &mut [u8]) -> Result<(usize, u64), TestError> {
        let receiver = &mut self.receiver;
        let len = poll_until(|| {
            let packet = receiver.receive().map_err(TestError::text)?;
            Ok(packet.map(|mut packet| packet.copy_to(into)))
        })?;
        let tag = into
            .get(14..22)
            .and_then(|tag| tag.try_into().ok())
            .map(u64::from_le_bytes);
        self.refill()?;
        Ok((len, tag.unwrap_or(u64::MAX)))
    }

    /// Waits for one packet and drops it.
    fn next(&mut self) -> Result<(), TestError> {
        poll_until(|| {
            let packet = self.receiver.receive().map_err(TestError::text)?.map(drop);
            if packet.is_none() {
                self.wait.sleep(|| self.receiver.enable_interrupts());
            }
            Ok(packet)
        })
    }

    /// Takes back one sent packet and returns its tag.
    fn reap(&mut self) -> Result<u64, TestError> {
        poll_until(|| self.transmitter.reap(drop).map_err(TestError::text))
    }
}

/// Runs all tests in every variant and receive mode, then the timed loops.
pub(crate) fn run(suite: &mut Suite<'_>, mut pci: Pci<Function>) -> Result<(), TestError> {
    const MODES: [(ReceiveMode, &str); 3] = [
        (ReceiveMode::Small, "small"),
        (ReceiveMode::Big, "big"),
        (ReceiveMode::Mergeable, "mergeable"),
    ];
    for variant in Variant::ALL {
        for (mode, mode_name) in MODES {
            let mut device = NetDevice::open(pci, variant, mode, Wait::Poll)?;
            let mut test = |name: &str, work: fn(&mut NetDevice) -> Result<(), TestError>| {
                let label = format_args!("net {name} {mode_name} {}", variant.name());
                suite.test(label, || work(&mut device));
            };
            test("echo", |device| echo(device, 1, MIN_FRAME, 1));
            test("echo-in-pieces", |device| {
                echo(device, 2, MAX_FRAME, PIECES)
            });
            test("batch", batched);
            pci = device.device.close();
        }
    }
    for wait in suite.waits() {
        let mut device = NetDevice::open(pci, Variant::Auto, ReceiveMode::Mergeable, *wait)?;
        for depth in [1, DEPTH] {
            let label = format_args!("net echo-60 auto qd{depth}{}", wait.name());
            suite.time(label, |load| timed(&mut device, depth, load));
        }
        pci = device.device.close();
    }
    Ok(())
}

fn echo(device: &mut NetDevice, tag: u64, len: usize, cuts: usize) -> Result<(), TestError> {
    let frame = device.frame(tag, len, cuts)?;
    device.send(tag, frame)?;
    device.push();
    if device.reap()? != tag {
        return Err(TestError::new("the wrong packet completed"));
    }
    check(device, tag, len)
}

/// Checks that the next packet has this tag and length.
fn check(device: &mut NetDevice, tag: u64, len: usize) -> Result<(), TestError> {
    let mut packet = [0; MAX_FRAME];
    let (got, got_tag) = device.receive(&mut packet)?;
    if got != len || got_tag != tag {
        return Err(TestError::Failed(format!(
            "received {got} bytes with tag {got_tag} instead of {len} with {tag}"
        )));
    }
    let wrong = packet[..len]
        .iter()
        .enumerate()
        .skip(22)
        .find(|(at, byte)| **byte != Pattern(tag + 1).byte(*at));
    match wrong {
        Some((at, _)) => Err(TestError::Failed(format!("byte {at} is wrong"))),
        None => Ok(()),
    }
}

fn batched(device: &mut NetDevice) -> Result<(), TestError> {
    for tag in 0..DEPTH as u64 {
        let frame = device.frame(tag, MIN_FRAME + 40 * tag as usize, 2)?;
        device.send(tag, frame)?;
    }
    device.push();
    for _ in 0..DEPTH {
        device.reap()?;
    }
    (0..DEPTH as u64).try_for_each(|tag| check(device, tag, MIN_FRAME + 40 * tag as usize))
}

/// Keeps `depth` small frames in flight until the time is up.
fn timed(device: &mut NetDevice, depth: usize, load: &mut Load) -> Result<(), TestError> {
    let mut idle: Vec<DmaBytes> = Vec::with_capacity(2 * depth);
    for tag in 0..2 * depth as u64 {
        idle.extend(device.frame(tag, MIN_FRAME, 1)?);
    }
    let header = Header::new_zeroed();
    let mut in_flight = 0;
    loop {
        while in_flight < depth && load.has_time_left() {
            let Some(piece) = idle.pop() else { break };
            device
                .transmitter
                .send(0, &header, [piece], drop)
                .map_err(TestError::text)?;
            in_flight += 1;
        }
        // The time may have been up before anything was added.
        if in_flight == 0 {
            return Ok(());
        }
        device.push();
        device.next()?;
        let mut more = true;
        while more {
            in_flight -= 1;
            load.count();
            more = in_flight > 0
                && device
                    .receiver
                    .receive()
                    .map_err(TestError::text)?
                    .map(drop)
                    .is_some();
        }
        device.refill()?;
        while device
            .transmitter
            .reap(|piece| idle.push(piece))
            .map_err(TestError::text)?
            .is_some()
        {}
    }
}
