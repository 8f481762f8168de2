//! What a guest changed with MODE SELECT, after each kind of reset.

use super::*;
use splitring_virtio::spec::scsi::control::{I_T_NEXUS_RESET, LOGICAL_UNIT_RESET};

/// MODE SENSE (10) of all pages, current values.
const SENSE: [u8; 10] = [0x5a, 8, 0x3f, 0, 0, 0, 0, 0, 255, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn pages(bench: &mut Bench<Scsi>) -> Vec<u8> {
    bench.poke(IN_AT, &[0; 255]);
    let seen = send(bench, LUN, &SENSE, &[], &[(IN_AT, 255, true)]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0), "{seen:x?}");
    let pages = bench.peek(IN_AT, 255);
    pages[..2 + usize::from(u16::from_be_bytes([pages[0], pages[1]]))].to_vec()
}

/// Sets SWP and D_SENSE and clears WCE.
fn select(bench: &mut Bench<Scsi>) {
    let mut list = pages(bench);
    list[..4].fill(0);
    let mut at = 8;
    while at < list.len() {
        match list[at] & 0x3f {
            0x08 => list[at + 2] &= !0x04,
            0x0a => {
                list[at + 2] |= 0x04;
                list[at + 4] |= 0x08;
            }
            _ => {}
        }
        at += 2 + usize::from(list[at + 1]);
    }
    bench.poke(OUT_AT, &list);
    let cdb = [0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    let out = [(OUT_AT, list.len() as u32, false)];
    let seen = send(bench, LUN, &cdb, &out, &[]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0), "{seen:x?}");
}

fn write(bench: &mut Bench<Scsi>) -> Seen {
    send(bench, LUN, &WRITE, &[(OUT_AT, 512, false)], &[]).unwrap()
}

fn manage(bench: &mut Bench<Scsi>, function: u32) {
    let mut order = vec![0; 24];
    order[4..8].copy_from_slice(&function.to_le_bytes());
    order[8..16].copy_from_slice(&LUN);
    bench.poke(OUT_AT, &order);
    bench.rings[0].offer(&[(OUT_AT, 24, false), (IN_AT, 1, true)]);
    bench.kick(0).unwrap();
    bench.run(REQUESTS, Cause::Resume).unwrap();
    bench.run(0, Cause::Resume).unwrap();
    assert_eq!(bench.rings[0].used().len(), 1);
    assert_eq!(bench.peek(IN_AT, 1), [0]);
}

#[test]
fn mode_pages_are_as_at_first_after_every_kind_of_reset() {
    type Reset = fn(Bench<Scsi>) -> Bench<Scsi>;
    let resets: [(&str, Reset); 3] = [
        ("of the unit", |mut bench| {
            manage(&mut bench, LOGICAL_UNIT_RESET);
            bench
        }),
        ("of the target", |mut bench| {
            manage(&mut bench, I_T_NEXUS_RESET);
            bench
        }),
        ("of the controller", |mut bench| {
            assert_eq!(bench.stop(), 0);
            Bench::start(Arc::clone(&bench.device), VERSION_1, 64)
        }),
    ];
    for (name, reset) in resets {
        let mut bench = bench();
        let before = pages(&mut bench);
        select(&mut bench);
        assert_ne!(pages(&mut bench), before);
        let refused = write(&mut bench);
        assert_eq!(
            (refused.status, refused.sense[0]),
            (2, 0x72),
            "a reset {name}"
        );
        let mut bench = reset(bench);
        let told = send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
        assert_eq!(
            (told.status, told.sense[0], told.sense[12]),
            (2, 0x70, 0x29),
            "a reset {name}"
        );
        assert_eq!(pages(&mut bench), before, "a reset {name}");
        assert_eq!(write(&mut bench).status, 0, "a reset {name}");
    }
}

#[test]
fn a_controller_that_is_reset_tells_others_that_their_mode_pages_changed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let config = |controller| crate::disk::config::DiskConfig {
        bus: crate::disk::config::Bus::Scsi,
        controller: Some(controller),
        share: true,
        ..crate::disk::config::DiskConfig::new(file.path())
    };
    let configs = [config(0), config(1)];
    let disks = configs.iter().map(|disk| ("disk".to_owned(), disk));
    let opened = open_controllers("m", disks, &mut Default::default()).unwrap();
    let [mut first, mut second] = [0, 1].map(|index| {
        let device = Arc::new(opened[index].build());
        let mut bench = Bench::start(device, VERSION_1, 64);
        send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
        bench
    });
    select(&mut first);
    let told = |bench: &mut Bench<Scsi>| {
        let seen = send(bench, LUN, &[0; 6], &[], &[]).unwrap();
        (seen.status, seen.sense.get(1..4).map(<[u8]>::to_vec))
    };
    // In descriptor format as long as the first has chosen that.
    assert_eq!(told(&mut second), (2, Some(vec![6, 0x2a, 1])));
    assert_eq!(first.stop(), 0);
    let seen = send(&mut second, LUN, &[0; 6], &[], &[]).unwrap();
    assert_eq!((seen.status, seen.sense[2], seen.sense[12]), (2, 6, 0x2a));
    // Nothing changed this time.
    first.device.reset();
    assert_eq!(told(&mut second), (0, None));
    assert_eq!(second.stop(), 0);
}
