//! What the host is asked for when a guest frees or zeroes blocks, by kind of storage. The device
//! and the driver run in this process; the kernel's own trace says which calls were made and what
//! the storage got.
//!
//! | storage | UNMAP, DISCARD | WRITE SAME, WRITE ZEROES unmapping | not unmapping | LBPRZ |
//! |---|---|---|---|---|
//! | file on ext4, xfs | a hole | a hole | zeroed range | 1 |
//! | file on tmpfs | a hole | a hole | written, since the file system refuses | 1 |
//! | loop, SCSI disk with WRITE SAME | discard | write-zeroes, may unmap | write-zeroes | 0 |
//! | thin volume, dm-crypt, SCSI disk without it | discard | kernel writes | kernel writes | 0 |

mod commands;
pub(crate) mod places;
mod recorder;

use std::fs::File;
use std::os::unix::fs::FileExt;

use splitring_needs as needs;

use commands::{Command, Session};
use places::Place;
use recorder::Recorder;

const MIB: u64 = 1 << 20;
const TERA: u64 = 1 << 40;
/// What the commands of the table cover.
const START: u64 = 3 * MIB;
const LEN: u64 = MIB;

/// What is to be seen on one kind of storage.
struct Row {
    place: fn() -> Place,
    /// Unmapped blocks are certain to read as zeroes.
    reads_zero: bool,
    free: &'static str,
    zero_unmapping: &'static str,
    zero: &'static str,
    /// The next time.
    zero_again: &'static str,
}

/// A row of the table above: calls by their names, then what the storage got: discards (D),
/// write-zeroes (N, for the trace has no letter of its own for them), writes (W).
const fn row(
    place: fn() -> Place,
    reads_zero: bool,
    [free, zero_unmapping, zero, zero_again]: [&'static str; 4],
) -> Row {
    Row {
        place,
        reads_zero,
        free,
        zero_unmapping,
        zero,
        zero_again,
    }
}

const TABLE: [Row; 8] = [
    row(places::ext4, true, ["punch", "punch", "zero", "zero"]),
    row(places::xfs, true, ["punch", "punch", "zero", "zero"]),
    row(
        places::tmpfs,
        true,
        ["punch", "punch", "zero+write", "write"],
    ),
    row(
        places::on_loop,
        false,
        ["discard D", "punch N", "zero N", "zero N"],
    ),
    row(
        places::scsi,
        false,
        ["discard D", "punch N", "zero N", "zero N"],
    ),
    row(
        places::plain_scsi,
        false,
        ["discard D", "zero W", "zero W", "zero W"],
    ),
    row(
        places::thin,
        false,
        ["discard D", "zero W", "zero W", "zero W"],
    ),
    row(
        places::crypt,
        false,
        ["discard D", "zero W", "zero W", "zero W"],
    ),
];

/// Whether this machine has what the places are made of.
fn possible() -> bool {
    needs::device_mapper("dm_thin_pool")
        && needs::device_mapper("dm_crypt")
        && needs::module("xfs", &[])
        && needs::program("mkfs.xfs", "xfsprogs")
        && needs::module("scsi_debug", &[("lbpu", "1"), ("lbpws", "1")])
        && recorder::possible()
}

/// Writes a pattern that nothing else leaves there.
fn fill(place: &Place) {
    let file = File::options()
        .write(true)
        .open(&place.path)
        .expect("opened");
    let all = vec![0x5a; usize::try_from(2 * START).expect("small")];
    file.write_all_at(&all, 0).expect("written");
    file.sync_all().expect("stable");
}

fn read(place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(2 * START).expect("small")];
    let file = File::open(&place.path).expect("opened");
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// Has one command done; what the host was asked for.
fn record(place: &Place, session: &mut Session, command: Command) -> String {
    let recorder = Recorder::start(place.device, START..START + LEN);
    session.good(command, START, LEN);
    let seen = recorder.stop();
    assert!(
        seen.storage.values().all(|bytes| *bytes == LEN),
        "{}, {command:?}: {seen:?}",
        place.name
    );
    seen.to_string()
}

#[test]
#[ignore = "needs the lab's storage"]
fn the_host_is_asked_for_what_its_storage_can_do_and_reports_tell_the_truth() {
    if !possible() {
        return;
    }
    for row in &TABLE {
        let place = (row.place)();
        // One after the other, for each locks the image.
        for open in [Session::scsi, Session::blk] {
            let mut session = open(&place.path);
            let may_unmap = row.zero_unmapping != row.zero;
            session.assert_reports(row.reads_zero, may_unmap);
            for (command, expected) in [
                (session.free(), row.free),
                (session.zero(true), row.zero_unmapping),
                (session.zero(false), row.zero),
                (session.zero(false), row.zero_again),
            ] {
                fill(&place);
                let seen = record(&place, &mut session, command);
                assert_eq!(seen, expected, "{}, {command:?}", place.name);
                let bytes = read(&place);
                let (from, to) = (
                    usize::try_from(START).expect("small"),
                    usize::try_from(START + LEN).expect("small"),
                );
                if command.zeroes() || row.reads_zero {
                    let zeroed = bytes[from..to].iter().all(|byte| *byte == 0);
                    assert!(zeroed, "{}, {command:?}: not zeroes", place.name);
                }
                let beside = bytes[..from].iter().chain(&bytes[to..]);
                assert!(
                    beside.copied().all(|byte| byte == 0x5a),
                    "{}, {command:?}: reaches beyond its range",
                    place.name
                );
            }
        }
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn freeing_two_tebibytes_writes_nothing_and_zeroing_as_much_is_refused() {
    if !possible() {
        return;
    }
    for place in [
        places::large_thin(3 * TERA),
        places::large_file(3 * TERA),
        places::large_loop(3 * TERA),
    ] {
        let mut session = Session::scsi(&place.path);
        let used = place.used();
        // All blocks that one descriptor can say.
        let len = u64::from(u32::MAX) * 512;
        let recorder = Recorder::start(place.device, 0..len);
        session.good(Command::Unmap, 0, len);
        session.refused(Command::WriteSame { unmap: true }, 0, len);
        session.refused(Command::WriteSame { unmap: false }, 0, len);
        drop(session);
        let mut session = Session::blk(&place.path);
        session.refused(Command::Discard, 0, len);
        session.refused(Command::WriteZeroes { unmap: true }, 0, len);
        session.refused(Command::WriteZeroes { unmap: false }, 0, len);
        let seen = recorder.stop();
        let expected = if place.device.is_some() {
            "discard D"
        } else {
            "punch"
        };
        assert_eq!(seen.to_string(), expected, "{}: {seen:?}", place.name);
        assert_eq!(place.used(), used, "{}: it takes more room", place.name);
    }
}
