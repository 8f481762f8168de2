//! What other threads want of the commands here: to end them, to look for them, to let go of a unit.

use std::sync::Arc;

use super::Requests;
use super::task::{Task, Work};
use crate::device::Queue;
use crate::scsi::sense::Status;
use crate::scsi::slot::Slot;
use crate::scsi::workers::{Filter, Mail, Order, Reply};

impl Requests {
    /// Lets go of removed units that have nothing in flight any more.
    pub(super) fn detach(&mut self) {
        let (tasks, backend) = (&self.tasks, &mut self.backend);
        let busy = |slot: &Arc<Slot>| {
            let mut tasks = tasks.iter().flatten();
            tasks.any(|task| Arc::ptr_eq(&task.nexus.slot, slot))
        };
        let gone = self.detaching.extract_if(.., |(slot, _)| !busy(slot));
        for (slot, reply) in gone {
            backend.detach(&slot);
            // Whoever waits for the reply finds the image closed.
            drop((slot, reply));
        }
    }

    /// Fetches what has come, from a ring of `size` descriptors.
    ///
    /// An order is about all commands that were sent before it. They are in the ring now at the latest, which holds
    /// no more than `size`: when as many have been taken, those were among them, however many the driver has added.
    pub(super) fn collect_messages(&mut self, size: u16) {
        let due = self.taken.saturating_add(size.into());
        let mail = self.enlistment.mailbox().collect();
        self.inbox.extend(mail.into_iter().map(|mail| (due, mail)));
    }

    /// Handles the messages before which all commands have been taken: all of them where the ring is empty.
    pub(super) fn read_messages(&mut self, queue: &mut Queue) {
        if self.inbox.is_empty() {
            return;
        }
        self.refresh();
        let emptied = !queue.spent();
        let taken = self.taken;
        while let Some((_, mail)) = self.inbox.pop_front_if(|(due, _)| emptied || *due <= taken) {
            self.mail(queue, mail);
        }
    }

    pub(super) fn mail(&mut self, queue: &mut Queue, mail: Mail) {
        match mail {
            Mail::Retry => self.retry(queue),
            Mail::Sweep(filter, reply) => self.sweep(queue, filter, reply),
            Mail::Look => self.look_at_reservations(queue),
        }
    }

    pub(super) fn tags_where(&self, mut wanted: impl FnMut(&Task) -> bool) -> Vec<usize> {
        let tasks = self.tasks.iter().enumerate();
        tasks
            .filter_map(|(tag, task)| task.as_ref().filter(|task| wanted(task)).map(|_| tag))
            .collect()
    }

    /// A range was unlocked, or a turn is over: whoever waited tries again.
    fn retry(&mut self, queue: &mut Queue) {
        for tag in self.tags_where(|task| matches!(task.work, Work::Locked(_))) {
            self.begin(queue, tag);
        }
        for tag in self.tags_where(|task| matches!(task.work, Work::Reserving(_))) {
            self.reserve(queue, tag);
        }
    }

    /// An order from another thread, or this one, about the commands here.
    fn sweep(&mut self, queue: &mut Queue, filter: Filter, reply: Reply) {
        let tags = self.tags_where(|task| filter.matches(&task.nexus.slot, task.request.id));
        match reply.sweep().order {
            Order::Query => {
                if !tags.is_empty() {
                    reply.sweep().note_found();
                }
            }
            Order::End(code) => {
                for tag in tags {
                    self.end(queue, tag, code, reply.another());
                }
            }
            Order::Detach => {
                self.detaching.push((filter.into_slot(), reply));
                self.detach();
            }
        }
    }

    /// Ends a command: at once if it only waits, else when the disk gives it back, which is asked to do so now.
    fn end(&mut self, queue: &mut Queue, tag: usize, code: u8, reply: Reply) {
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        task.replies.push(reply);
        task.end.get_or_insert(code);
        let wide = u64::try_from(tag).unwrap_or(u64::MAX);
        match task.work {
            // Its memory is the host's until the host lets go of it.
            Work::Disk(_) => return self.backend.cancel(&task.nexus, wide),
            // It may have its effect until the host is done with it.
            Work::Saving(_) => return,
            Work::Queued(..) => self.backend.forget(&task.nexus, wide),
            Work::Locked(_) | Work::Reserving(_) | Work::Aborting(_) => {}
        }
        self.finish(queue, tag, Status::Good);
    }
}
