//! Cards that are saved and go on in another machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::net::passt::Passt;
use crate::testing::pci::PATIENCE;
use crate::testing::restore::{damaged_states_are_errors_at_worst, move_to, save};

const NEW: Mac = [2, 0, 0, 0, 0, 9];
const RECEIVE_AT: u64 = 0x10_0000;

fn card() -> (Arc<Net>, UnixStream) {
    let (far, ours) = UnixStream::pair().unwrap();
    let backend = Arc::new(Passt::from_fd(ours.into()).unwrap());
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let card = Net::new("net0", MacAddress(MAC), &NetConfig::default(), backend);
    (Arc::new(card), far)
}

fn control(guest: &mut Guest, command: &[u8]) {
    guest.poke(0x3000, command);
    guest.poke(0x3f00, &[0xaa]);
    let chain = [(0x3000, command.len() as u32, false), (0x3f00, 1, true)];
    guest.offer(usize::from(CTRL), &chain);
    guest.kick(CTRL);
    guest.wait_used(usize::from(CTRL), 1);
    assert_eq!(guest.peek(0x3f00, 1), [ctrl::OK]);
}

/// A frame as passt sends it.
fn arrive(far: &mut UnixStream, to: Mac, last: u8) {
    let mut bytes = frame(60);
    bytes[..6].copy_from_slice(&to);
    bytes[59] = last;
    far.write_all(&60_u32.to_be_bytes()).unwrap();
    far.write_all(&bytes).unwrap();
}

/// A card whose driver has set an address of its own and offers two buffers, which the card has
/// taken.
fn running() -> (Guest, Arc<Net>, UnixStream) {
    let (device, far) = card();
    let mut guest = Guest::started(Arc::<Net>::clone(&device));
    for buffer in 0..2 {
        let at = RECEIVE_AT + buffer * 0x1000;
        guest.offer(usize::from(RX), &[(at, 2048, true)]);
    }
    guest.kick(RX);
    control(&mut guest, &[&[1, 1][..], &NEW].concat());
    control(&mut guest, &[2, 0, 5, 0]);
    (guest, device, far)
}

#[test]
fn a_card_goes_on_with_its_address_its_filters_its_buffers_and_what_was_to_be_sent() {
    let (guest, device, _old) = running();
    device.announce();
    let (next, mut far) = card();
    let mut guest = move_to(guest, next, |guest| {
        assert!(save(guest).contains("\"taken\":[["), "buffers were taken");
        guest.poke(0x1000, &[0; 72]);
        guest.offer(usize::from(TX), &[(0x1000, 72, false)]);
        guest.kick(TX);
    });
    far.read_exact(&mut [0; 64]).unwrap();
    guest.wait_used(usize::from(TX), 1);
    arrive(&mut far, MAC, 1);
    arrive(&mut far, NEW, 2);
    assert_eq!(guest.wait_used(usize::from(RX), 1).len(), 1);
    assert_eq!(
        guest.peek(RECEIVE_AT + 12 + 59, 1),
        [2],
        "the other was for nobody"
    );
    let config: [u8; 8] = guest.bar_read(DEVICE);
    assert_eq!(config[..6], NEW);
    assert_eq!(config[6], 3, "the link is up and the guest to be announced");
    control(&mut guest, &[3, 0]);
    guest.restart();
    assert_eq!(
        guest.bar_read(DEVICE),
        MAC,
        "a reset has the card's own again"
    );
}

#[test]
fn a_link_that_is_down_stays_down() {
    let (guest, device, _old) = running();
    device.set_link(false);
    let (next, mut far) = card();
    let mut guest = move_to(guest, next, |_| ());
    arrive(&mut far, NEW, 1);
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(guest.rings[usize::from(RX)].used().is_empty());
    let [status] = guest.bar_read(DEVICE + 6);
    assert_eq!(status & 1, 0);
}

#[test]
fn damaged_states_of_a_card_are_errors_at_worst() {
    let (guest, ..) = running();
    let far = Mutex::new(Vec::new());
    let make = || -> Arc<dyn VirtioDevice> {
        let (card, other) = card();
        far.lock().unwrap().push(other);
        card
    };
    damaged_states_are_errors_at_worst(&guest, make, 150);
}
