//! Commands that change reservations: in turn, when the change is stable, and after the commands they abort.

use std::sync::Arc;

use splitring_virtio::spec::scsi::response;

use super::Requests;
use super::task::Work;
use crate::device::Queue;
use crate::scsi::reserve::Port;
use crate::scsi::reserving::{self, Outcome, Progress};
use crate::scsi::sense::Status;
use crate::scsi::workers::{Order, Sweep, Waiter};

impl Requests {
    /// Makes the change of a command, unless another one is being made.
    pub(super) fn reserve(&mut self, queue: &mut Queue, tag: usize) {
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        let Work::Reserving(change) = task.work else {
            return;
        };
        let mailbox = self.enlistment.mailbox();
        let Some(turn) = task.nexus.unit.turn(mailbox) else {
            return;
        };
        match reserving::change(&task.nexus, turn, change, mailbox) {
            Progress::Done(outcome) => self.reserved(queue, tag, outcome),
            Progress::Saving(saving) => task.work = Work::Saving(saving),
        }
    }

    /// A change was made, or not.
    fn reserved(&mut self, queue: &mut Queue, tag: usize, outcome: Outcome) {
        match outcome {
            Ok(ports) if !ports.is_empty() => self.abort_others(tag, &ports),
            Ok(_) => self.finish(queue, tag, Status::Good),
            Err(status) => self.finish(queue, tag, status),
        }
    }

    /// PREEMPT AND ABORT: good when the preempted commands are gone.
    fn abort_others(&mut self, tag: usize, ports: &[Port]) {
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        let paths = task.nexus.unit.paths().into_iter();
        let targets = paths
            .filter(|path| ports.contains(&path.port))
            .map(|path| path.commands())
            .collect();
        let waiter = Waiter::Mailbox(Arc::clone(self.enlistment.mailbox()));
        let sweep = Sweep::start(Order::End(response::ABORTED), targets, waiter);
        task.work = Work::Aborting(sweep);
    }

    /// Goes on with commands whose change has been made stable, or whose victims have ended.
    pub(super) fn look_at_reservations(&mut self, queue: &mut Queue) {
        let waits = |work: &Work| matches!(work, Work::Saving(_) | Work::Aborting(_));
        for tag in self.tags_where(|task| waits(&task.work)) {
            let Some(Some(task)) = self.tasks.get(tag) else {
                continue;
            };
            match &task.work {
                Work::Saving(saving) => {
                    if let Some(outcome) = saving.outcome() {
                        self.reserved(queue, tag, outcome);
                    }
                }
                Work::Aborting(sweep) if sweep.is_done() => {
                    self.finish(queue, tag, Status::Good);
                }
                _ => {}
            }
        }
    }
}
