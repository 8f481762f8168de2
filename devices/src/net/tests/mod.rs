//! The card, played with by a guest on plain memory and a backend that keeps frames in lists.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

mod bad_input;
mod pause;
mod receive;
mod saved;
mod start;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use splitring_virtio::spec::feature::VERSION_1;
use splitring_virtio::spec::net::{HEADER_SIZE, Header, ctrl, feature};
use splitring_virtio::spec::pci::common as reg;
use zerocopy::IntoBytes;

use super::buffers::GuestBuffers;
use super::port::{MOST_TAKEN, Refusal};
use super::*;
use crate::device::{Cause, Outcome, VirtioDevice};
use crate::events::DeviceEvent;
use crate::testing::pci::{DEVICE, Guest};
use crate::testing::{Bench, Buffer, observed};

const RX: u16 = 0;
const TX: u16 = 1;
const CTRL: u16 = 2;
const MAC: Mac = [2, 0, 0, 0, 0, 1];
const HEAD: u32 = 12;

/// What the host side has seen and has to give.
#[derive(Default)]
struct Host {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<(Header, Vec<u8>)>,
    full: bool,
    /// It can't be read.
    broken: bool,
    /// Frames are taken and sent together, but for those that begin with this byte, which are refused.
    refuses: Option<u8>,
    pairs: u16,
    offloads: Option<Offloads>,
}

struct Lists {
    host: Arc<Mutex<Host>>,
    ready: Arc<io::PipeReader>,
    pairs: u16,
}

struct ListPort {
    host: Arc<Mutex<Host>>,
    ready: Arc<io::PipeReader>,
    /// What the last frame had left.
    last: Vec<u8>,
    /// What goes with the next commit.
    taken: Vec<(Header, Vec<u8>)>,
}

impl NetBackend for Lists {
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn max_pairs(&self) -> u16 {
        self.pairs
    }
    fn open_port(&self, _: u16) -> io::Result<Box<dyn FramePort>> {
        Ok(Box::new(ListPort {
            host: Arc::clone(&self.host),
            ready: Arc::clone(&self.ready),
            last: Vec::new(),
            taken: Vec::new(),
        }))
    }
    fn set_guest_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.host.lock().unwrap().offloads = Some(offloads);
        Ok(())
    }
    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        self.host.lock().unwrap().pairs = pairs;
        Ok(())
    }
}

impl FramePort for ListPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>> {
        assert!(
            into.segments().len() <= buffers::MAX_SEGMENTS,
            "more than the kernel takes"
        );
        let mut host = self.host.lock().unwrap();
        if host.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let Some(frame) = host.to_guest.pop_front() else {
            return Ok(None);
        };
        drop(host);
        // As a host does that leaves the checksum validated: only a driver that negotiated it may see so.
        let header = Header {
            flags: 2,
            ..Header::default()
        };
        self.last = [header.as_bytes(), &frame].concat();
        into.store(&[&self.last]);
        self.last.drain(..into.len().min(self.last.len()));
        Ok(Some((HEADER_SIZE + frame.len()) as u64))
    }
    fn rest(&self) -> &[u8] {
        &self.last
    }
    fn send(&mut self, header: &Header, frame: GuestBuffers<'_>) -> io::Result<bool> {
        let mut host = self.host.lock().unwrap();
        if host.full {
            return Ok(false);
        }
        let mut bytes = vec![0; frame.len()];
        frame.fetch(&mut bytes);
        if host.refuses.is_some() {
            self.taken.push((*header, bytes));
        } else {
            host.from_guest.push((*header, bytes));
        }
        Ok(true)
    }
    fn commit(&mut self, refused: &mut Vec<Refusal>) {
        assert!(self.taken.len() <= MOST_TAKEN, "more than a port takes");
        let mut host = self.host.lock().unwrap();
        for (number, frame) in self.taken.drain(..).enumerate() {
            if frame.1.first() == host.refuses.as_ref() {
                let error = io::Error::from_raw_os_error(libc::EINVAL);
                refused.push(Refusal { number, error });
            } else {
                host.from_guest.push(frame);
            }
        }
    }
}

fn lists(pairs: u16) -> (Arc<Lists>, Arc<Mutex<Host>>) {
    let host = Arc::new(Mutex::new(Host::default()));
    let backend = Lists {
        host: Arc::clone(&host),
        ready: Arc::new(io::pipe().unwrap().0),
        pairs,
    };
    (Arc::new(backend), host)
}

struct Card {
    bench: Bench<Net>,
    host: Arc<Mutex<Host>>,
}

impl Card {
    fn new(features: u64) -> Self {
        Self::sized(features, 256, NetConfig::default())
    }

    fn sized(features: u64, size: u16, config: NetConfig) -> Self {
        let (backend, host) = lists(config.pairs());
        let card = Net::new("net0", MacAddress(MAC), &config, backend);
        Self {
            bench: Bench::start(Arc::new(card), features | VERSION_1, size),
            host,
        }
    }

    fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        self.bench.rings[usize::from(queue)].offer(buffers)
    }

    fn used(&mut self, queue: u16) -> Vec<(u16, u32)> {
        self.bench.rings[usize::from(queue)].used()
    }

    fn arrive(&self, frame: Vec<u8>) {
        self.host.lock().unwrap().to_guest.push_back(frame);
    }

    /// Runs a control command; the answer, if the card gives one, with its used length.
    fn control(&mut self, command: &[u8]) -> (u8, u32) {
        self.bench.poke(0x100, command);
        self.bench.poke(0x900, &[0xaa]);
        self.offer(
            CTRL,
            &[(0x100, command.len() as u32, false), (0x900, 1, true)],
        );
        self.bench.kick(CTRL).unwrap();
        let used = self.used(CTRL);
        (self.bench.peek(0x900, 1)[0], used[0].1)
    }

    fn dropped(&self) -> u64 {
        self.bench.device.metrics().totals().sent.dropped.sum()
    }
}

fn frame(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    bytes[..6].copy_from_slice(&MAC);
    bytes
}

#[test]
fn a_packet_is_sent_whatever_its_framing() {
    let sent = frame(100);
    let bytes = [Header::default().as_bytes(), &sent].concat();
    for cuts in [
        vec![112],
        vec![12, 100],
        vec![1, 11, 100],
        vec![5, 10, 97],
        vec![12, 14, 86],
    ] {
        let mut card = Card::new(0);
        card.bench.poke(0x1000, &bytes);
        let mut at = 0x1000;
        let chain: Vec<Buffer> = cuts
            .iter()
            .map(|len| {
                at += u64::from(*len);
                (at - u64::from(*len), *len, false)
            })
            .collect();
        let head = card.offer(TX, &chain);
        assert_eq!(card.bench.kick(TX), Ok(Outcome::Idle));
        assert_eq!(card.used(TX), [(head, 0)]);
        assert_eq!(
            card.host.lock().unwrap().from_guest,
            [(Header::default(), sent.clone())],
            "{cuts:?}"
        );
    }
}

#[test]
fn a_packet_waits_for_room_and_none_overtakes_it() {
    let mut card = Card::new(0);
    for byte in [1, 2] {
        card.bench.poke(0x1000 * u64::from(byte) + 12, &[byte; 60]);
        card.offer(TX, &[(0x1000 * u64::from(byte), 72, false)]);
    }
    card.host.lock().unwrap().full = true;
    card.bench.kick(TX).unwrap();
    assert!(card.used(TX).is_empty());
    card.host.lock().unwrap().full = false;
    card.bench.run(TX, Cause::Source(0)).unwrap();
    assert_eq!(card.used(TX).len(), 2);
    let order: Vec<u8> = card
        .host
        .lock()
        .unwrap()
        .from_guest
        .iter()
        .map(|(_, f)| f[0])
        .collect();
    assert_eq!(order, [1, 2]);
}

#[test]
fn packets_sent_together_are_all_completed_and_those_refused_counted() {
    let mut card = Card::new(0);
    card.host.lock().unwrap().refuses = Some(7);
    for byte in 0..200_u8 {
        let at = 0x1000 * u64::from(byte);
        card.bench.poke(at + 12, &[byte; 60]);
        card.offer(TX, &[(at, 72, false)]);
    }
    assert_eq!(card.bench.kick(TX), Ok(Outcome::More));
    assert_eq!(card.used(TX).len(), 128, "as many as a pass sends");
    assert_eq!(card.bench.run(TX, Cause::Resume), Ok(Outcome::Idle));
    assert_eq!(card.used(TX).len(), 72);
    let sent: Vec<u8> = card
        .host
        .lock()
        .unwrap()
        .from_guest
        .iter()
        .map(|(_, frame)| frame[0])
        .collect();
    let expected: Vec<u8> = (0..200).filter(|byte| *byte != 7).collect();
    assert_eq!(sent, expected);
    let totals = card.bench.device.metrics().totals().sent;
    assert_eq!((totals.frames, totals.errors), (199, 1));
}

#[test]
fn frames_above_the_limit_wait_for_the_timer_in_both_directions() {
    let config = NetConfig {
        packets: Some(10),
        ..NetConfig::default()
    };
    let mut card = Card::sized(0, 256, config);
    for i in 0..5 {
        card.offer(RX, &[(0x10000 + i * 0x1000, 1526, true)]);
        card.arrive(frame(60));
        card.bench.poke(0x1000, &[0; 72]);
        card.offer(TX, &[(0x1000, 72, false)]);
    }
    card.bench.run(RX, Cause::Resume).unwrap();
    // A tenth of a second's worth comes at once, and one more is under way.
    assert_eq!((card.used(RX).len(), card.used(TX).len()), (2, 2));
    card.bench.run(RX, Cause::Source(0)).unwrap();
    card.bench.kick(TX).unwrap();
    assert_eq!((card.used(RX).len(), card.used(TX).len()), (0, 0));
    std::thread::sleep(std::time::Duration::from_millis(150));
    card.bench.run(RX, Cause::Timer(1)).unwrap();
    assert!(card.used(TX).is_empty() && !card.used(RX).is_empty());
    card.bench.run(RX, Cause::Timer(2)).unwrap();
    assert!(!card.used(TX).is_empty());
}

#[test]
fn an_interface_that_fails_does_not_flood_the_log_whatever_the_driver_does() {
    let mut card = Card::new(0);
    card.host.lock().unwrap().broken = true;
    let lines = crate::testing::logged(|| {
        for _ in 0..10 {
            card.offer(RX, &[(0x1000, 1526, true)]);
            for _ in 0..10 {
                card.bench.run(RX, Cause::Source(0)).unwrap();
            }
            card.bench.stop();
            card.bench = Bench::start(Arc::clone(&card.bench.device), VERSION_1, 256);
        }
    });
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0].contains("device=\"net0\""), "{lines:?}");
    let received = card.bench.device.metrics().totals().received;
    assert_eq!(received.errors, 100);
}

#[test]
fn hidden_features_take_along_what_needs_them() {
    let hide = |hidden: &[Hidden]| {
        let config = NetConfig {
            hide: hidden.to_vec(),
            ..NetConfig::default()
        };
        let card = Card::sized(0, 256, config);
        card.bench.device.features() & card.bench.device.mask()
    };
    let all = hide(&[]);
    assert_eq!(hide(&[Hidden::MrgRxbuf]), all & !feature::MRG_RXBUF);
    let left = hide(&[Hidden::GuestCsum]);
    for rule in RULES.iter().filter(|rule| left & rule.feature != 0) {
        assert_ne!(left & rule.needs_any, 0, "{:#x}", rule.feature);
    }
    assert_eq!(left & (feature::GUEST_TSO4 | feature::GUEST_ECN), 0);
    assert_eq!(hide(&[Hidden::CtrlVq]) & feature::GUEST_ANNOUNCE, 0);
}

#[test]
fn the_filter_follows_the_control_queue() {
    let mut card = Card::new(feature::CTRL_VQ | feature::CTRL_RX);
    let arrives = |card: &mut Card, to: Mac| {
        let mut bytes = frame(60);
        bytes[..6].copy_from_slice(&to);
        card.offer(RX, &[(0x4000, 1526, true)]);
        card.arrive(bytes);
        card.bench.run(RX, Cause::Source(0)).unwrap();
        !card.used(RX).is_empty()
    };
    assert!(arrives(&mut card, MAC) && !arrives(&mut card, [2, 9, 9, 9, 9, 9]));
    assert_eq!(
        card.control(&[ctrl::RX, ctrl::RX_PROMISC, 1]),
        (ctrl::OK, 1)
    );
    assert!(arrives(&mut card, [2, 9, 9, 9, 9, 9]));
}

#[test]
fn an_address_that_the_driver_sets_is_in_the_configuration_space_until_the_reset() {
    const NEW: Mac = [2, 0x11, 0x22, 0x33, 0x44, 0x55];
    let (backend, host) = lists(1);
    let card = Net::new("net0", MacAddress(MAC), &NetConfig::default(), backend);
    let mut guest = Guest::started(Arc::new(card));
    let generation = |guest: &Guest| guest.common::<1>(reg::CONFIG_GENERATION);
    let before = generation(&guest);
    let command = [&[ctrl::MAC, ctrl::MAC_ADDR_SET][..], &NEW].concat();
    guest.poke(0x100, &command);
    guest.offer(usize::from(CTRL), &[(0x100, 8, false), (0x900, 1, true)]);
    guest.kick(CTRL);
    assert_eq!(guest.wait_used(usize::from(CTRL), 1).len(), 1);
    assert_eq!(guest.peek(0x900, 1), [ctrl::OK]);
    assert_eq!(guest.bar_read(DEVICE), NEW);
    assert_ne!(generation(&guest), before, "a driver sees that it changed");
    // Frames to it arrive, and those to the old one don't.
    let mut frames = [frame(60), frame(60)];
    frames[1][..6].copy_from_slice(&NEW);
    frames[1][20] = 0x77;
    host.lock().unwrap().to_guest.extend(frames);
    guest.offer(usize::from(RX), &[(0x1000, 1526, true)]);
    guest.kick(RX);
    guest.wait_used(usize::from(RX), 1);
    assert_eq!(guest.peek(0x1000 + 12 + 20, 1), [0x77]);
    guest.set_status(0);
    assert_eq!(guest.bar_read(DEVICE), MAC);
}

#[test]
fn control_commands_are_answered_in_the_last_byte_with_an_honest_length() {
    let mut card = Card::new(feature::CTRL_VQ | feature::CTRL_RX);
    assert_eq!(card.control(&[9, 9]), (ctrl::ERR, 1));
    assert_eq!(card.control(&[]), (ctrl::ERR, 1));
    card.bench.poke(0x900, &[0xaa; 4]);
    card.bench.poke(0x100, &[ctrl::RX, ctrl::RX_ALLMULTI, 1]);
    // Split anywhere, and with room in front of the answer.
    card.offer(
        CTRL,
        &[
            (0x100, 1, false),
            (0x101, 2, false),
            (0x900, 3, true),
            (0x903, 1, true),
        ],
    );
    card.bench.kick(CTRL).unwrap();
    assert_eq!(card.used(CTRL)[0].1, 4);
    assert_eq!(card.bench.peek(0x900, 4), [0, 0, 0, ctrl::OK]);
}

#[test]
fn queue_pairs_are_switched_within_their_range() {
    let config = NetConfig {
        queues: Some(4),
        ..NetConfig::default()
    };
    let mut card = Card::sized(feature::CTRL_VQ | feature::MQ, 256, config);
    assert_eq!(card.host.lock().unwrap().pairs, 1, "one pair after reset");
    let mut ask = |pairs: u16| {
        let [low, high] = pairs.to_le_bytes();
        card.bench
            .poke(0x100, &[ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, low, high]);
        card.bench.rings[8].offer(&[(0x100, 4, false), (0x900, 1, true)]);
        card.bench.kick(8).unwrap();
        (
            card.bench.peek(0x900, 1)[0],
            card.host.lock().unwrap().pairs,
        )
    };
    assert_eq!(ask(4), (ctrl::OK, 4));
    assert_eq!((ask(0), ask(5)), ((ctrl::ERR, 4), (ctrl::ERR, 4)));
}

#[test]
fn offloads_follow_the_driver() {
    let mut card = Card::new(feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_CSUM);
    assert_eq!(card.host.lock().unwrap().offloads, Some(Offloads::CSUM));
    let command = [&[ctrl::GUEST_OFFLOADS, 0][..], &0u64.to_le_bytes()].concat();
    assert_eq!(card.control(&command), (ctrl::OK, 1));
    assert_eq!(card.host.lock().unwrap().offloads, Some(Offloads::empty()));
    let command = [
        &[ctrl::GUEST_OFFLOADS, 0][..],
        &feature::GUEST_TSO4.to_le_bytes(),
    ]
    .concat();
    assert_eq!(card.control(&command), (ctrl::ERR, 1), "not negotiated");
}

#[test]
fn a_link_that_is_down_drops_frames_and_shows_in_the_configuration() {
    let mut card = Card::new(0);
    let status = |card: &Card| {
        let mut bytes = [0; 2];
        card.bench.device.read_config(6, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    assert_eq!(status(&card), 1);
    card.bench.device.set_link(false);
    assert_eq!(status(&card), 0);
    card.bench.poke(0x1000, &[0; 72]);
    card.offer(TX, &[(0x1000, 72, false)]);
    card.bench.kick(TX).unwrap();
    assert_eq!((card.used(TX).len(), card.dropped()), (1, 1));
    card.bench.device.announce();
    assert_eq!(status(&card), 0, "a driver that can't is not asked");
}

#[test]
fn each_change_of_the_link_is_reported() {
    let card = Card::new(0);
    let (sink, seen) = observed();
    card.bench.device.report_to(sink);
    let handle = card.bench.device.handle();
    for up in [true, false, false, true] {
        handle.set_link(up).unwrap();
    }
    let changed = |up| DeviceEvent::LinkChanged {
        device: "net0".into(),
        up,
    };
    assert_eq!(*seen.lock().unwrap(), [changed(false), changed(true)]);
}

#[test]
fn a_driver_is_asked_to_announce_until_it_has() {
    let mut card = Card::new(feature::CTRL_VQ | feature::GUEST_ANNOUNCE);
    let status = |card: &Card| {
        let mut bytes = [0; 2];
        card.bench.device.read_config(6, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    card.bench.device.announce();
    assert_eq!(status(&card), 3);
    assert_eq!(
        card.control(&[ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK]),
        (ctrl::OK, 1)
    );
    assert_eq!(status(&card), 1);
}

#[test]
fn only_the_own_address_may_send_where_that_is_asked_for() {
    let mut card = Card::sized(
        0,
        256,
        NetConfig {
            mac_filter: true,
            ..NetConfig::default()
        },
    );
    for (source, passes) in [(MAC, 1), ([2, 0, 0, 0, 0, 9], 1)] {
        let mut bytes = vec![0; 72];
        bytes[18..24].copy_from_slice(&source);
        card.bench.poke(0x1000, &bytes);
        card.offer(TX, &[(0x1000, 72, false)]);
        card.bench.kick(TX).unwrap();
        assert_eq!(card.host.lock().unwrap().from_guest.len(), passes);
    }
}

#[test]
fn the_configuration_can_be_read_at_any_offset_and_ends_where_it_ends() {
    let card = Card::sized(
        0,
        256,
        NetConfig {
            mtu: Some(9000),
            ..NetConfig::default()
        },
    );
    let mut whole = [0xee; 24];
    card.bench.device.read_config(0, &mut whole);
    assert_eq!(
        (&whole[..6], &whole[10..12], &whole[17..]),
        (&MAC[..], &9000u16.to_le_bytes()[..], &[0xee; 7][..])
    );
    let mut byte = [0xee];
    card.bench.device.read_config(usize::MAX, &mut byte);
    assert_eq!(byte, [0xee]);
}
