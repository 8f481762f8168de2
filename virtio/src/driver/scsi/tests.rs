//! The SCSI drivers against a minimal device on the crate's own device end.

use super::*;
use crate::device::queue::ActiveQueue;
use crate::driver::{QueueOptions, Window};
use crate::mem::PlainRam;
use crate::mem::testbed::Testbed;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use crate::spec::scsi::{Event, event};
use zerocopy::IntoBytes;

const RING: u64 = EVENT_IDX | INDIRECT_DESC;
const LUN: Lun = Lun {
    target: 5,
    unit: 0x1234,
};

fn queue<T>(bed: &mut Testbed) -> (Queue<T, Window>, ActiveQueue<PlainRam>) {
    let queue = bed.queue(QueueOptions::new(8, RING).tables(8));
    let device = bed.device_end(queue.areas(), RING);
    (queue, device)
}

struct Rig {
    bed: Testbed,
    driver: RequestQueue<DmaBytes, Window>,
    device: ActiveQueue<PlainRam>,
}

impl Rig {
    fn new() -> Self {
        let mut bed = Testbed::new(1 << 18);
        let (queue, device) = queue(&mut bed);
        let frames = bed.take(4 * FRAME_LEN);
        let config = Config {
            seg_max: 5.into(),
            ..Config::default()
        };
        Self {
            driver: RequestQueue::new(queue, frames, &config),
            bed,
            device,
        }
    }

    fn list(&mut self, pieces: &[&[u8]]) -> ScatterList {
        ScatterList::from_buffers(
            pieces
                .iter()
                .map(|it| self.bed.piece(it))
                .collect::<Vec<_>>(),
        )
    }
}

#[test]
fn a_command_s_lists_go_in_as_they_are_between_request_and_response() {
    let mut rig = Rig::new();
    let data_out = rig.list(&[b"out", b"put"]);
    let data_in = rig.list(&[b"....", b"..", b"."]);
    let mut command = Command::new(LUN, &[0x12, 1, 2, 3, 4, 5]);
    command.attribute = Attribute::Ordered;
    rig.driver
        .submit(42, command.data_out(data_out).data_in(data_in))
        .unwrap();
    let _ = rig.driver.publish();

    let mut chain = rig.device.pop().unwrap().unwrap();
    let lengths: Vec<_> = chain.readable().iter().map(|it| it.len()).collect();
    assert_eq!(lengths, [51, 3, 3]);
    let lengths: Vec<_> = chain.writable().iter().map(|it| it.len()).collect();
    assert_eq!(lengths, [108, 4, 2, 1]);
    let mut reader = chain.reader();
    let header: RequestHeader = reader.read_obj().unwrap();
    assert_eq!(header.lun, [1, 5, 0x52, 0x34, 0, 0, 0, 0]);
    assert_eq!(
        (header.id.get(), header.task_attr),
        (42, task_attr::ORDERED)
    );
    let mut rest = [0; 38];
    reader.read_exact(&mut rest).unwrap();
    assert_eq!(rest[..7], [0x12, 1, 2, 3, 4, 5, 0]);
    assert_eq!(rest[32..], *b"output");

    let mut writer = chain.writer();
    let mut sense = [0; SENSE_MAX];
    sense[..14].copy_from_slice(&[0x70, 0, 0x25, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0x24, 9]);
    let response = ResponseHeader {
        sense_len: 18.into(),
        residual: 3.into(),
        status_qualifier: 7.into(),
        status: 2,
        response: response::OK,
    };
    writer.write_obj(&response).unwrap();
    writer.write_all(&sense).unwrap();
    writer.write_all(b"in").unwrap();
    rig.device.complete(chain, 110);
    let _ = rig.device.publish();

    let mut done = rig.driver.poll().unwrap().unwrap();
    let answer = &done.response;
    assert_eq!(
        (done.id, answer.status, answer.residual, answer.qualifier),
        (42, 2, 3, 7)
    );
    assert_eq!(
        (answer.sense().len(), answer.sense_code()),
        (18, Some([5, 0x24, 9]))
    );
    assert!(!answer.good());
    let mut came = Vec::new();
    done.command
        .data_in
        .for_each_mut(|piece| came.extend_from_slice(piece.bytes()));
    assert_eq!(came, b"in.....");
    assert_eq!(done.command.data_out.segments(), 2);
}

#[test]
fn no_answer_does_not_pass_for_success_and_a_long_sense_length_is_cut() {
    let mut rig = Rig::new();
    for sense_len in [None, Some(96u32), Some(97), Some(u32::MAX)] {
        rig.driver.submit(1, Command::new(LUN, &[0])).unwrap();
        let _ = rig.driver.publish();
        let mut chain = rig.device.pop().unwrap().unwrap();
        if let Some(len) = sense_len {
            let response = ResponseHeader {
                sense_len: len.into(),
                ..ResponseHeader::default()
            };
            chain.writer().write_obj(&response).unwrap();
        }
        rig.device.complete(chain, 0);
        let _ = rig.device.publish();
        let done = rig.driver.poll().unwrap().unwrap();
        assert_eq!(done.response.good(), sense_len.is_some());
        assert_eq!(
            done.response.sense().len(),
            if sense_len.is_some() { 96 } else { 0 }
        );
        assert_eq!(done.response.sense_code(), None, "no fixed-format sense");
    }
}

#[test]
fn commands_that_are_not_taken_come_back_with_their_lists() {
    let mut rig = Rig::new();
    let data_out = rig.list(&[&b"x"[..]; 4]);
    let data_in = rig.list(&[&b"x"[..]; 2]);
    let command = Command::new(LUN, &[0]).data_out(data_out).data_in(data_in);
    let (command, why) = rig.driver.submit(0, command).unwrap_err();
    assert_eq!((why, command.data_out.segments()), (Refusal::TooLong, 4));
    for id in 0..4 {
        let data_out = rig.list(&[b"x"]);
        rig.driver
            .submit(id, Command::new(LUN, &[0]).data_out(data_out))
            .unwrap();
    }
    let (_, why) = rig.driver.submit(4, Command::new(LUN, &[0])).unwrap_err();
    assert_eq!((why, rig.driver.in_flight()), (Refusal::Full, 4));

    let mut ids = Vec::new();
    let proof = rig.bed.proof();
    rig.driver
        .reclaim(&proof, |done| ids.push((done.id, done.response.good())))
        .unwrap();
    ids.sort_unstable();
    assert_eq!(ids, [(0, false), (1, false), (2, false), (3, false)]);
    rig.driver.submit(9, Command::new(LUN, &[0])).unwrap();
}

#[test]
fn units_are_written_in_the_single_level_format_and_read_back() {
    assert_eq!(
        Lun {
            target: 255,
            unit: 16383
        }
        .bytes(),
        [1, 255, 0x7f, 0xff, 0, 0, 0, 0]
    );
    for lun in [
        LUN,
        Lun { target: 0, unit: 0 },
        Lun {
            target: 9,
            unit: 255,
        },
    ] {
        assert_eq!(Lun::from_bytes(lun.bytes()), Some(lun));
    }
    assert_eq!(
        Lun::from_bytes([1, 2, 0, 3, 0, 0, 0, 0]),
        Some(Lun { target: 2, unit: 3 })
    );
    assert_eq!(Lun::from_bytes([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(Lun::from_bytes([1, 2, 0xc0, 3, 0, 0, 0, 0]), None);
}

#[test]
fn task_management_names_function_unit_and_task() {
    let mut bed = Testbed::new(1 << 16);
    let (queue, mut device) = queue(&mut bed);
    let frames = bed.take(2 * CONTROL_FRAME_LEN);
    let mut driver = ControlQueue::new(queue, frames);
    let functions = [
        (TaskFunction::Abort(77), 0, 77),
        (TaskFunction::AbortSet, 1, 0),
        (TaskFunction::ClearAca, 2, 0),
        (TaskFunction::ClearSet, 3, 0),
        (TaskFunction::NexusReset, 4, 0),
        (TaskFunction::UnitReset, 5, 0),
        (TaskFunction::Query(88), 6, 88),
        (TaskFunction::QuerySet, 7, 0),
    ];
    for (task, subtype, id) in functions {
        driver.task(3, LUN, task).unwrap();
        let _ = driver.publish();
        let mut chain = device.pop().unwrap().unwrap();
        let request: crate::spec::scsi::TaskManagement = chain.reader().read_obj().unwrap();
        assert_eq!(
            (request.kind.get(), request.subtype.get(), request.id.get()),
            (0, subtype, id)
        );
        assert_eq!(
            (request.lun, chain.readable_len(), chain.writable_len()),
            (LUN.bytes(), 24, 1)
        );
        chain
            .writer()
            .write_all(&[response::FUNCTION_SUCCEEDED])
            .unwrap();
        device.complete(chain, 1);
        let _ = device.publish();
        let expected = CompletedControl {
            tag: 3,
            response: response::FUNCTION_SUCCEEDED,
            events: 0,
        };
        assert_eq!(driver.poll().unwrap(), Some(expected));
    }
    driver.task(1, LUN, TaskFunction::AbortSet).unwrap();
    driver.task(2, LUN, TaskFunction::AbortSet).unwrap();
    assert_eq!(
        driver.task(3, LUN, TaskFunction::AbortSet),
        Err(Refusal::Full)
    );
    driver.reclaim(&bed.proof()).unwrap();
    driver.task(3, LUN, TaskFunction::AbortSet).unwrap();
}

#[test]
fn asynchronous_notification_answers_the_events_that_will_come() {
    let mut bed = Testbed::new(1 << 16);
    let (queue, mut device) = queue(&mut bed);
    let frames = bed.take(CONTROL_FRAME_LEN);
    let mut driver = ControlQueue::new(queue, frames);
    for (subscribe, kind) in [(false, 1), (true, 2)] {
        driver.events(5, LUN, 0x14, subscribe).unwrap();
        let _ = driver.publish();
        let mut chain = device.pop().unwrap().unwrap();
        let request: crate::spec::scsi::AsyncNotification = chain.reader().read_obj().unwrap();
        assert_eq!(
            (request.kind.get(), request.event_requested.get()),
            (kind, 0x14)
        );
        chain
            .writer()
            .write_all(&[4, 0, 0, 0, response::OK])
            .unwrap();
        device.complete(chain, 5);
        let _ = device.publish();
        let done = driver.poll().unwrap().unwrap();
        assert_eq!((done.response, done.events), (response::OK, 4));
    }
}

#[test]
fn events_come_in_buffers_that_go_round() {
    let mut bed = Testbed::new(1 << 16);
    let (queue, mut device) = queue(&mut bed);
    let frames = bed.take(3 * EVENT_FRAME_LEN);
    let mut driver = EventQueue::new(queue, frames);
    for round in 0..10u32 {
        driver.refill().unwrap();
        let _ = driver.publish();
        let mut chain = device.pop().unwrap().unwrap();
        assert_eq!((chain.readable_len(), chain.writable_len()), (0, 16));
        let missed = if round % 2 == 0 { event::MISSED } else { 0 };
        let happened = Event {
            event: (event::TRANSPORT_RESET | missed).into(),
            lun: LUN.bytes(),
            reason: round.into(),
        };
        chain.writer().write_all(happened.as_bytes()).unwrap();
        device.complete(chain, 16);
        let _ = device.publish();
        let expected = ReceivedEvent {
            event: event::TRANSPORT_RESET,
            lun: Some(LUN),
            reason: round,
            missed: missed != 0,
        };
        assert_eq!(driver.poll().unwrap(), Some(expected));
        assert_eq!(driver.poll().unwrap(), None);
    }
    driver.reclaim(&bed.proof()).unwrap();
    driver.refill().unwrap();
}
