//! Tests of the SCSI controller: commands with data in both directions, sense data, task
//! management.

use alloc::format;
use alloc::vec::Vec;

use splitring_virtio::driver::DmaBytes;
use splitring_virtio::driver::pci::Pci;
use splitring_virtio::driver::scsi::{
    CONTROL_FRAME_LEN, Command, CompletedCommand, ControlQueue, EVENT_FRAME_LEN, EventQueue,
    FEATURES, FRAME_LEN, Lun, RequestQueue, Response, TaskFunction,
};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::scsi::{Config, response};
use zerocopy::{FromZeros, IntoBytes};

use crate::device::{Device, Variant};
use crate::machine::Function;
use crate::suite::{Load, Pattern, Suite, TestError, Wait, bytes, poll_until};

const CONTROL: u16 = 0;
const EVENT: u16 = 1;
const REQUEST: u16 = 2;
const BLOCK: usize = 4096;
const DEPTH: usize = 32;
/// Number of event buffers, and of control requests in flight.
const FEW: usize = 8;
const DISK: Lun = Lun { target: 0, unit: 0 };

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
const NO_OPCODE: [u8; 6] = [0x1f, 0, 0, 0, 0, 0];
const ILLEGAL_OPCODE: [u8; 3] = [0x05, 0x20, 0x00];

/// A controller with its three queues.
struct Controller {
    device: Device,
    requests: RequestQueue,
    control: ControlQueue,
    _events: EventQueue,
    wait: Wait,
    /// Block size and number of blocks of the first disk.
    block: u32,
    blocks: u32,
}

impl Controller {
    fn open(pci: Pci<Function>, variant: Variant, wait: Wait) -> Result<Self, TestError> {
        let mut device = Device::negotiate(pci, variant, FEATURES)?;
        let mut config = Config::new_zeroed();
        device.config(config.as_mut_bytes())?;
        let queue = device.queue(REQUEST)?;
        let frames = bytes(FRAME_LEN * usize::from(queue.areas().size))?;
        let mut requests = RequestQueue::new(queue, frames, &config);
        let control = ControlQueue::new(device.queue(CONTROL)?, bytes(CONTROL_FRAME_LEN * FEW)?);
        let mut events = EventQueue::new(device.queue(EVENT)?, bytes(EVENT_FRAME_LEN * FEW)?);
        requests.disable_interrupts();
        device.enable(CONTROL, control.areas(), Wait::Poll)?;
        device.enable(EVENT, events.areas(), Wait::Poll)?;
        device.enable(REQUEST, requests.areas(), wait)?;
        device.set_driver_ok();
        events.refill().map_err(TestError::text)?;
        device.kick(EVENT, events.publish());
        let mut controller = Self {
            device,
            requests,
            control,
            _events: events,
            wait,
            block: 0,
            blocks: 0,
        };
        controller.wait_until_ready()?;
        controller.read_capacity()?;
        Ok(controller)
    }

    /// Waits until the unit is ready. It reports its power-on once, which is not an error.
    fn wait_until_ready(&mut self) -> Result<(), TestError> {
        for _ in 0..4 {
            if self.run(&TEST_UNIT_READY, None, None)?.response.good() {
                return Ok(());
            }
        }
        Err(TestError::new("the unit does not become ready"))
    }

    fn read_capacity(&mut self) -> Result<(), TestError> {
        let mut data = self.read(&READ_CAPACITY, ScatterList::from_buffers([bytes(8)?]))?;
        let mut answer = [0; 8];
        data.for_each_mut(|piece| answer.copy_from_slice(piece.bytes()));
        let [a, b, c, d, e, f, g, h] = answer;
        self.blocks = u32::from_be_bytes([a, b, c, d]).saturating_add(1);
        self.block = u32::from_be_bytes([e, f, g, h]);
        if self.block == 0 || !(BLOCK as u32).is_multiple_of(self.block) {
            return Err(TestError::Failed(format!(
                "unsupported block size: {} bytes",
                self.block
            )));
        }
        Ok(())
    }

    fn submit(&mut self, id: u64, command: Command) -> Result<(), TestError> {
        self.requests
            .submit(id, command)
            .map_err(|(_, why)| TestError::text(why))
    }

    fn push(&mut self) {
        let kick = self.requests.publish();
        self.device.kick(REQUEST, kick);
    }

    fn reap(&mut self) -> Result<Option<CompletedCommand>, TestError> {
        self.requests.poll().map_err(TestError::text)
    }

    fn finish(&mut self) -> Result<CompletedCommand, TestError> {
        self.push();
        self.next()
    }

    /// Waits for one command.
    fn next(&mut self) -> Result<CompletedCommand, TestError> {
        poll_until(|| {
            let done = self.reap()?;
            if done.is_none() {
                self.wait.sleep(|| self.requests.enable_interrupts());
            }
            Ok(done)
        })
    }

    fn run(
        &mut self,
        cdb: &[u8],
        out: Option<ScatterList>,
        room: Option<ScatterList>,
    ) -> Result<CompletedCommand, TestError> {
        let command = Command::new(DISK, cdb)
            .data_out(out.unwrap_or_default())
            .data_in(room.unwrap_or_default());
        self.submit(1, command)?;
        self.finish()
    }

    fn read(&mut self, cdb: &[u8], room: ScatterList) -> Result<ScatterList, TestError> {
        let done = self.run(cdb, None, Some(room))?;
        good(&done.response)?;
        Ok(done.command.data_in)
    }

    /// Returns a READ (10) or WRITE (10) of whole 4 KiB units, starting at unit `at`.
    fn transfer(&self, opcode: u8, at: u32, bytes: usize) -> [u8; 10] {
        let per = BLOCK as u32 / self.block;
        let [a, b, c, d] = (at * per).to_be_bytes();
        let [e, f] = ((bytes as u32 / self.block) as u16).to_be_bytes();
        [opcode, 0, a, b, c, d, 0, e, f, 0]
    }

    fn task(&mut self, lun: Lun, task: TaskFunction) -> Result<u8, TestError> {
        self.control.task(9, lun, task).map_err(TestError::text)?;
        let kick = self.control.publish();
        self.device.kick(CONTROL, kick);
        let done = poll_until(|| self.control.poll().map_err(TestError::text))?;
        Ok(done.response)
    }
}

fn good(answer: &Response) -> Result<(), TestError> {
    if answer.good() {
        return Ok(());
    }
    let code = answer.sense_code();
    let Response {
        response, status, ..
    } = *answer;
    Err(TestError::Failed(format!(
        "response {response}, status {status:#x}, sense {code:02x?}"
    )))
}

/// Runs all tests in every variant, then the timed loops.
pub(crate) fn run(suite: &mut Suite<'_>, mut pci: Pci<Function>) -> Result<(), TestError> {
    for variant in Variant::ALL {
        let mut controller = Controller::open(pci, variant, Wait::Poll)?;
        let mut test = |name: &str, work: fn(&mut Controller) -> Result<(), TestError>| {
            suite.test(format_args!("scsi {name} {}", variant.name()), || {
                work(&mut controller)
            });
        };
        test("inquiry", inquiry);
        test("read-write", read_write);
        test("batch", batched);
        test("sense", sense);
        test("task-management", tasks);
        pci = controller.device.close();
    }
    for wait in suite.waits() {
        let mut controller = Controller::open(pci, Variant::Auto, *wait)?;
        for (opcode, direction) in [(READ_10, "read"), (WRITE_10, "write")] {
            for depth in [1, DEPTH] {
                let label = format_args!("scsi 4k-{direction} auto qd{depth}{}", wait.name());
                suite.time(label, |load| timed(&mut controller, opcode, depth, load));
            }
        }
        pci = controller.device.close();
    }
    Ok(())
}

fn inquiry(controller: &mut Controller) -> Result<(), TestError> {
    // Split into three segments: the data is a stream of bytes.
    let room = Pattern(0).list(&[8, 20, 8])?;
    let mut data = controller.read(&INQUIRY, room)?;
    let mut answer = Vec::new();
    data.for_each_mut(|piece| answer.extend_from_slice(piece.bytes()));
    if answer[0] != 0
        || answer[8..36]
            .iter()
            .any(|byte| !(0x20..0x7f).contains(byte))
    {
        return Err(TestError::Failed(format!("{answer:02x?}")));
    }
    Ok(())
}

/// Writes chained lists and reads into others: the driver copies neither.
fn read_write(controller: &mut Controller) -> Result<(), TestError> {
    let pattern = Pattern(21);
    let out = pattern.chain(&[&[512, 3584], &[1, 4095]])?;
    let write = controller.transfer(WRITE_10, 16, 2 * BLOCK);
    let done = controller.run(&write, Some(out), None)?;
    good(&done.response)?;
    let read = controller.transfer(READ_10, 16, 2 * BLOCK);
    pattern.check(controller.read(&read, Pattern(0).chain(&[&[4000], &[96, 4096]])?)?)
}

fn batched(controller: &mut Controller) -> Result<(), TestError> {
    for opcode in [WRITE_10, READ_10] {
        for id in 0..DEPTH as u64 {
            let cdb = controller.transfer(opcode, 64 + id as u32, BLOCK);
            let command = Command::new(DISK, &cdb);
            let command = match opcode {
                WRITE_10 => command.data_out(Pattern(200 + id).list(&[BLOCK])?),
                _ => command.data_in(Pattern(0).list(&[BLOCK])?),
            };
            controller.submit(id, command)?;
        }
        let mut seen = 0u64;
        for _ in 0..DEPTH {
            let done = controller.finish()?;
            good(&done.response)?;
            seen |= 1 << done.id;
            if opcode == READ_10 {
                Pattern(200 + done.id).check(done.command.data_in)?;
            }
        }
        if seen != u64::MAX >> (64 - DEPTH) {
            return Err(TestError::new("a command completed twice, or never"));
        }
    }
    Ok(())
}

fn sense(controller: &mut Controller) -> Result<(), TestError> {
    let done = controller.run(&NO_OPCODE, None, None)?;
    match done.response.sense_code() {
        Some(ILLEGAL_OPCODE) => Ok(()),
        other => Err(TestError::Failed(format!(
            "response to an unknown opcode: {other:02x?}"
        ))),
    }
}

fn tasks(controller: &mut Controller) -> Result<(), TestError> {
    let answers = [
        controller.task(DISK, TaskFunction::Abort(12345))?,
        controller.task(DISK, TaskFunction::UnitReset)?,
    ];
    if answers
        .iter()
        .any(|answer| *answer != response::OK && *answer != response::FUNCTION_SUCCEEDED)
    {
        return Err(TestError::Failed(format!(
            "responses of task management: {answers:?}"
        )));
    }
    controller.wait_until_ready()
}

/// Keeps `depth` random 4 KiB transfers in flight until the time is up.
fn timed(
    controller: &mut Controller,
    opcode: u8,
    depth: usize,
    load: &mut Load,
) -> Result<(), TestError> {
    let per = BLOCK as u32 / controller.block;
    let places = u64::from(controller.blocks / per);
    let mut idle: Vec<ScatterList<DmaBytes>> = Vec::with_capacity(depth);
    for _ in 0..depth {
        idle.push(Pattern(5).list(&[BLOCK])?);
    }
    let mut in_flight = 0;
    loop {
        while let Some(data) = idle.pop_if(|_| load.has_time_left()) {
            let cdb = controller.transfer(opcode, (load.random() % places) as u32, BLOCK);
            let command = Command::new(DISK, &cdb);
            let command = if opcode == READ_10 {
                command.data_in(data)
            } else {
                command.data_out(data)
            };
            controller.submit(in_flight, command)?;
            in_flight += 1;
        }
        // The time may have been up before anything was added.
        if in_flight == 0 {
            return Ok(());
        }
        controller.push();
        let mut done = controller.next().map(Some)?;
        while let Some(command) = done {
            good(&command.response)?;
            let Command {
                data_in, data_out, ..
            } = command.command;
            idle.push(if opcode == READ_10 { data_in } else { data_out });
            in_flight -= 1;
            load.count();
            done = controller.reap()?;
        }
    }
}
