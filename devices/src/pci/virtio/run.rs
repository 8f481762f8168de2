//! Starting and stopping a device: rings to queues, tasks to workers, doorbells to eventfds.

use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_STRIDE};
use super::{RunningDevice, State, VirtioPci};
use crate::device::{Broken, Queue, ReadyQueue, Start, Task, TaskQueue};
use crate::interrupt::{ConfigNotifier, InterruptSink};
use crate::log;
use crate::rings::{HandedQueue, Ring, Rings};
use crate::throttle::Throttle;
use crate::worker::{NewTask, Worker};

/// How long requests may take that are in flight when bus mastering is turned off.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

impl VirtioPci {
    /// DRIVER_OK. What goes wrong is the driver's to learn: the device needs a reset.
    pub(super) fn start(&self, state: &mut State) {
        // An access that was under way when the function left the bus.
        if state.ejected {
            return;
        }
        self.interrupts.set_driver_ok();
        self.connect_line(state);
        if state.bus_master {
            self.run(state);
        } else {
            state.deferred = true;
        }
    }

    fn run(&self, state: &mut State) {
        let started: Result<(), Broken> = self.run_after(state, || Ok(()));
        if let Err(broken) = started {
            self.interrupts.broken(&broken);
        }
    }

    /// Starts the device; `prepare` is called when it has started, before any of its tasks runs.
    pub(super) fn run_after<E: From<Broken>>(
        &self,
        state: &mut State,
        prepare: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut running = RunningDevice::default();
        let started = self.start_tasks(state, &mut running, prepare);
        state.running = Some(running);
        self.move_doorbells(state);
        started
    }

    fn start_tasks<E: From<Broken>>(
        &self,
        state: &State,
        running: &mut RunningDevice,
        prepare: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut queues = self.activate(state)?;
        let ready = queues
            .iter()
            .map(|slot| ReadyQueue {
                index: slot.index,
                size: slot.queue.size(),
            })
            .collect();
        running.queues = queues.iter().map(|slot| slot.index).collect();
        let start = Start {
            features: state.transport.accepted(),
            ram: self.ram.clone(),
            queues: ready,
            config: ConfigNotifier::new(self.interrupts.clone()),
            rings: self.rings(&queues)?,
        };
        let taken = start.rings.taken();
        let tasks = self.device.start(start).map_err(Broken::device)?;
        queues.retain(|slot| !taken.has(slot.index));
        prepare()?;
        for task in tasks {
            let worker = self.worker_of(&task)?;
            let task = self.equip(task, &mut queues);
            let id = worker.add(task).map_err(Broken::device)?;
            running.tasks.push((Arc::clone(worker), id));
        }
        Ok(())
    }

    /// Which worker runs a task; see [`VirtioDevice::task_number`](crate::device::VirtioDevice::task_number).
    fn worker_of(&self, task: &Task) -> Result<&Arc<Worker>, Broken> {
        let first = task.queues.first().copied().unwrap_or(0);
        let number = usize::from(self.device.task_number(first));
        number
            .checked_rem(self.workers.len())
            .and_then(|at| self.workers.get(at))
            .ok_or_else(|| Broken::device("it has no worker"))
    }

    /// The rings the driver enabled, checked and made live.
    fn activate(&self, state: &State) -> Result<Vec<TaskQueue>, Broken> {
        let features = state.transport.ring_features();
        (0u16..)
            .zip(state.transport.queues())
            .filter(|(_, config)| config.ready())
            .map(|(index, config)| {
                let queue: Queue = config
                    .activate(self.ram.clone(), features)
                    .map_err(|error| Broken::new(index, error))?;
                Ok(TaskQueue { index, queue })
            })
            .collect()
    }

    /// What the device may hand over.
    fn rings(&self, queues: &[TaskQueue]) -> Result<Rings, Broken> {
        let mut offered = Vec::new();
        for slot in queues {
            let index = slot.index;
            let call = self.calls.get(usize::from(index));
            let (Some(kick), Some(call)) = (self.kick(index), call) else {
                continue;
            };
            let state = slot.queue.save();
            if !state.in_flight.is_empty() || state.next_avail != state.published {
                return Err(Broken::new(index, "requests are in flight"));
            }
            let ring = Ring {
                index,
                size: state.size,
                desc: state.desc,
                avail: state.avail,
                used: state.used,
                base: state.next_avail,
            };
            let (kick, call) = (Arc::clone(kick), Arc::clone(call));
            offered.push(HandedQueue::new(ring, kick, call, self.interrupts.clone()));
        }
        Ok(Rings::new(offered))
    }

    /// Gives a task its queues, each with its doorbell.
    fn equip(&self, task: Task, queues: &mut Vec<TaskQueue>) -> NewTask {
        let mut own = Vec::with_capacity(task.queues.len());
        for index in task.queues {
            let Some(at) = queues.iter().position(|slot| slot.index == index) else {
                continue;
            };
            if let Some(kick) = self.kick(index) {
                own.push((queues.swap_remove(at), Arc::clone(kick)));
            }
        }
        NewTask {
            label: self.device.id().to_owned(),
            queues: own,
            handler: task.handler,
            sink: self.interrupts.clone(),
        }
    }

    /// Connects the interrupt line if the driver does without MSI-X.
    pub(super) fn connect_line(&self, state: &mut State) {
        let Some(worker) = self.workers.first() else {
            return;
        };
        let connected = self.interrupts.bind_line(self.wiring.as_ref(), self.gsi);
        match connected {
            Ok(None) => {}
            Ok(Some(resample)) => {
                let interrupts = Arc::clone(&self.interrupts);
                let action = Box::new(move || interrupts.resample());
                match worker.watch(self.device.id(), resample, action) {
                    Ok(id) => state.line_watch = Some((Arc::clone(worker), id)),
                    Err(error) => {
                        log::error!(self.throttle(), device = self.device.id(), %error, "the interrupt line may hang");
                    }
                }
            }
            Err(error) => {
                log::error!(self.throttle(), device = self.device.id(), %error, "the interrupt line is not connected");
            }
        }
    }

    /// The driver turned MSI-X on or off: off on a running device, the line is needed.
    pub(super) fn line_wanted(&self) {
        let mut state = self.state();
        if state.running.is_some() {
            self.connect_line(&mut state);
        }
    }

    /// The command register was written. A function that may not master the bus neither touches guest memory nor sends a
    /// message (PCI Local Bus 3.0 §6.2.2): its device starts when it may, and stands still while it may not.
    pub(super) fn follow_bus_master(&self) {
        let on = self.config.bus_master();
        let mut state = self.state();
        if on == state.bus_master {
            return;
        }
        state.bus_master = on;
        self.interrupts.set_bus_master(on);
        if on {
            self.interrupts.msix.set_bus_master(true);
            if std::mem::take(&mut state.deferred) {
                self.run(&mut state);
            } else {
                self.wake(&state);
            }
        } else {
            self.finish(&mut state);
            self.interrupts.msix.set_bus_master(false);
        }
    }

    fn wake(&self, state: &State) {
        for (worker, id) in state.running.iter().flat_map(|running| &running.tasks) {
            // A worker that has failed has told the machine, which is ending.
            let _ = worker.wake(*id);
        }
    }

    /// Has all tasks finish what they have in flight. What the host does not answer in time is cancelled, as by a reset,
    /// which the device then needs.
    fn finish(&self, state: &mut State) {
        let tasks = state.running.iter().flat_map(|running| &running.tasks);
        let mut left = 0_usize;
        for (worker, id) in tasks {
            left = left.saturating_add(worker.finish(*id, FINISH_LIMIT).unwrap_or(0));
        }
        if left > 0 {
            self.quiesce(state);
            let why = format_args!(
                "bus mastering was turned off while the host did not answer {left} requests"
            );
            self.interrupts.broken(&Broken::device(why));
        }
    }

    /// Lets the doorbells of the running queues signal their eventfds where the BAR answers now, and nowhere else.
    pub(super) fn move_doorbells(&self, state: &mut State) {
        let base = state.base;
        let Some(running) = state.running.as_mut() else {
            return;
        };
        if running.bound_at == base {
            return;
        }
        running.bound_at = base;
        for (addr, index) in running.bound.drain(..) {
            let unbound = self
                .kick(index)
                .map(|kick| self.wiring.unbind_notify(addr, kick));
            if let Some(Err(error)) = unbound {
                log::warn!(self.throttle(), device = self.device.id(), %error, "a doorbell stays where it was");
            }
        }
        let Some(base) = base else {
            return;
        };
        for &index in &running.queues {
            let addr = doorbell(base, index);
            match self
                .kick(index)
                .map(|kick| self.wiring.bind_notify(addr, kick))
            {
                Some(Ok(())) => running.bound.push((addr, index)),
                // It still works, by an exit to user space.
                Some(Err(error)) => {
                    log::warn!(self.throttle(), device = self.device.id(), %error, "a doorbell is slow");
                }
                None => {}
            }
        }
    }

    /// For lines that the guest can cause.
    pub(super) fn throttle(&self) -> &Throttle {
        &self.interrupts.throttle
    }

    fn kick(&self, index: u16) -> Option<&Arc<EventFd>> {
        self.kicks.get(usize::from(index))
    }

    /// A doorbell that arrived as an access: before its eventfd was bound, or through the window. Ignored unless the
    /// device runs.
    pub(super) fn notify(&self, offset: u64) {
        const STRIDE: u64 = NOTIFY_STRIDE as u64;
        let Ok(index) = u16::try_from(offset / STRIDE) else {
            return;
        };
        let state = self.state();
        let runs = |running: &RunningDevice| running.queues.contains(&index);
        if state.running.as_ref().is_some_and(runs)
            && let Some(kick) = self.kick(index)
        {
            // An eventfd at its limit is signalled already.
            let _ = kick.write(1);
        }
    }

    /// The driver wrote 0 to the status. When this returns nothing is in flight and all is as after power-on.
    pub(super) fn reset(&self, state: &mut State) {
        self.quiesce(state);
        state.transport.reset();
        state.device_feature_select = 0;
        state.driver_feature_select = 0;
        state.queue_select = 0;
        self.interrupts.reset();
        self.device.reset();
    }

    /// Stops the device for good, before the machine's memory goes: nothing of it runs afterwards.
    pub fn stop(&self) {
        let mut state = self.state();
        self.quiesce(&mut state);
        if let Some((worker, id)) = state.line_watch.take() {
            // A worker that has ended watches nothing any more.
            let _ = worker.stop(id);
        }
    }

    fn quiesce(&self, state: &mut State) {
        state.deferred = false;
        let base = state.base.take();
        self.move_doorbells(state);
        state.base = base;
        let Some(running) = state.running.take() else {
            return;
        };
        for (worker, id) in running.tasks {
            match worker.stop(id) {
                Ok(Some(stopped)) if stopped.in_flight > 0 => log::debug!(
                    self.throttle(),
                    device = self.device.id(),
                    in_flight = stopped.in_flight,
                    "requests are given back unanswered"
                ),
                Ok(_) => {}
                // The worker has told the machine, which is ending.
                Err(error) => {
                    log::error!(self.throttle(), device = self.device.id(), %error, "the device cannot be stopped");
                }
            }
        }
    }
}

/// The address of a queue's doorbell.
fn doorbell(base: u64, index: u16) -> u64 {
    let offset = u64::from(NOTIFY_STRIDE).saturating_mul(u64::from(index));
    base.saturating_add(u64::from(NOTIFY))
        .saturating_add(offset)
}
