//! Generations of a machine on the same workers and the same opened disk, whose rings are bound to their threads.

use std::sync::atomic::AtomicBool;

use super::pause::{offer, status_of};
use super::*;
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};
use crate::testing::pci::{Guest as Machine, PATIENCE, spawn_workers};
use crate::worker::{Worker, pause_all};

struct Host {
    _file: tempfile::NamedTempFile,
    disk: Arc<RawDisk>,
    queues: u16,
    workers: Vec<Arc<Worker>>,
}

impl Host {
    fn new(queues: u16, workers: usize) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK_LEN).unwrap();
        let config = DiskConfig {
            aio: Aio::IoUring,
            ..DiskConfig::new(file.path())
        };
        Self {
            disk: Arc::new(RawDisk::open(&config, queues, 256).unwrap()),
            _file: file,
            queues,
            workers: spawn_workers(workers, &Arc::default()),
        }
    }

    /// A machine whose driver enables these queues, and no flushes: so every write goes through a ring.
    fn generation(&self, enabled: &[u16]) -> Machine {
        let disk = Arc::<RawDisk>::clone(&self.disk);
        let device = Arc::new(Blk::new("disk0", disk, self.queues, 256, ""));
        let mask = !(feature::FLUSH | feature::CONFIG_WCE);
        let mut machine = Machine::on_workers(device, mask, &self.workers, Arc::default());
        machine.decode_memory();
        machine.negotiate();
        machine.rings = enabled
            .iter()
            .map(|index| machine.enable_queue(*index))
            .collect();
        machine.add_status(splitring_virtio::spec::status::DRIVER_OK);
        machine
    }

    /// Writes through each of the enabled queues.
    fn serve(&self, enabled: &[u16]) {
        let mut machine = self.generation(enabled);
        written(&mut machine, enabled);
    }
}

fn written(machine: &mut Machine, enabled: &[u16]) {
    for (ring, queue) in enabled.iter().enumerate() {
        let place = u64::from(*queue);
        offer(machine, ring, *queue, place, place * 8, Some(1));
        machine.wait_used(ring, 1);
        assert_eq!(status_of(machine, place), status::OK, "queue {queue}");
    }
}

#[test]
fn a_disk_serves_one_generation_after_the_other_on_the_same_workers() {
    for (queues, workers) in [(1, 1), (1, 3), (4, 1), (4, 3)] {
        let host = Host::new(queues, workers);
        let all: Vec<u16> = (0..queues).collect();
        host.serve(&all);
        // Drivers that use fewer queues, and not the first ones.
        host.serve(&all[queues as usize - 1..]);
        host.serve(&all[..1]);
        host.serve(&all[queues as usize / 2..]);
        host.serve(&all);
    }
}

#[test]
fn a_generation_that_ends_and_another_that_begins_in_a_pause_lose_nothing() {
    let host = Host::new(4, 3);
    let all = [0, 1, 2, 3];
    let mut machine = host.generation(&all);
    written(&mut machine, &all);
    pause_all(&host.workers, PATIENCE, &AtomicBool::new(false)).unwrap();
    drop(machine);
    let mut machine = host.generation(&all);
    for queue in all {
        let place = u64::from(queue);
        offer(&mut machine, queue.into(), queue, place, 0, Some(2));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(machine.rings.iter_mut().all(|ring| ring.used().is_empty()));
    for worker in &host.workers {
        worker.resume().unwrap();
    }
    for queue in all {
        machine.wait_used(usize::from(queue), 1);
        assert_eq!(status_of(&machine, queue.into()), status::OK);
    }
}
