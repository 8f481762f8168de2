//! The last handle on a machine, dropped by the embedder's code on one of the machine's own
//! threads.

#![cfg(feature = "selftest")]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use splitring::config::DiskConfig;
use splitring::disk::{
    Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault, Memory, Perform, Ram, queue_of,
    queue_on_thread,
};
use splitring::selftest::GUEST;
use splitring::{Event, ExitReason, Machine, Resources, VmConfig};

const PATIENCE: Duration = Duration::from_secs(60);
/// Well below what a drain waits for a blocking thread.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A disk that is handed the last handle on its machine with the first request, and drops it.
struct Dropper {
    on_thread: bool,
    handle: Arc<Mutex<Receiver<Machine>>>,
    took: Sender<Duration>,
}

struct Stream {
    memory: Memory,
    handle: Arc<Mutex<Receiver<Machine>>>,
    took: Sender<Duration>,
}

impl Disk for Dropper {
    fn geometry(&self) -> Geometry {
        Geometry::new(1 << 20)
    }

    fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let stream = Stream {
            memory: Memory::new(ram),
            handle: Arc::clone(&self.handle),
            took: self.took.clone(),
        };
        Ok(match self.on_thread {
            true => queue_on_thread(stream, depth).expect("a thread"),
            false => queue_of(stream, depth),
        })
    }
}

impl Perform for Stream {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        if let Ok(machine) = self.handle.lock().expect("no panic").recv() {
            let start = Instant::now();
            drop(machine);
            self.took.send(start.elapsed()).expect("the test waits");
        }
        match op {
            DiskOp::Read { data, .. } | DiskOp::Write { data, .. } => self.memory.load(data),
            _ => Ok(0),
        }
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.memory.release()
    }
}

/// How long the drop takes.
fn dropped_by_the_disk(on_thread: bool) {
    if !splitring_needs::kvm() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let kernel = dir.path().join("guest");
    std::fs::write(&kernel, GUEST).expect("write the kernel");
    let (give, handle) = channel();
    let (took, takes) = channel();
    let disk = Dropper {
        on_thread,
        handle: Arc::new(Mutex::new(handle)),
        took,
    };
    let cmdline = "ecam=0xe0000000 mmio=0xc0000000 tsc-khz=1000000 millis=1 interrupts=off";
    let config = VmConfig::default()
        .kernel(kernel)
        .kernel_cache(false)
        .cmdline(cmdline.to_owned())
        .rng(false)
        .disk(DiskConfig::new("report").id("report").serial("report"));
    let resources = Resources::options()
        .disk("report", Arc::new(disk))
        .any_kvm(true)
        .open(&config)
        .expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    let events = machine.events().expect("events");
    machine.start().expect("starts");
    give.send(machine).expect("the disk waits");
    drop(give);
    let took = takes
        .recv_timeout(PATIENCE)
        .expect("the guest uses its disk");
    assert!(took < AT_ONCE, "{took:?}");
    let start = Instant::now();
    loop {
        match events.try_next() {
            Some(Event::Ended(reason)) => return assert_eq!(reason, ExitReason::Stopped),
            _ => assert!(start.elapsed() < PATIENCE, "the machine does not end"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_disk_that_drops_the_last_handle_on_its_worker_does_not_wait_for_the_machine_s_end() {
    dropped_by_the_disk(false);
}

#[test]
fn a_disk_that_drops_the_last_handle_on_its_blocking_thread_does_not_wait_either() {
    dropped_by_the_disk(true);
}
