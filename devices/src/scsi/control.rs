//! The control and the event queue (VIRTIO 1.2 §5.6.6.2, §5.6.6.3).
//!
//! Task management really acts: an order goes to every request thread, and the request is answered when all commands
//! it affects have been. Events are handed to the driver as it provides buffers.

use std::os::fd::AsFd;
use std::sync::Arc;

use splitring_virtio::spec::scsi::{
    AsyncNotification, AsyncNotificationResponse, CONTROL_QUEUE, EVENT_QUEUE, TaskManagement,
    control, response,
};
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::address::{self, Address, Place};
use super::events::{Listening, Wanted};
use super::hub::{Hub, Map};
use super::sense::attention;
use super::unit::Nexus;
use super::workers::{Order, Sweep, Target, Waiter};
use crate::device::{
    Broken, Cause, DescriptorChain, Outcome, Queue, QueueHandler, QueueSet, Source,
};

const MAIL: u32 = 0;

/// A task management request that waits for commands to end.
struct Pending {
    chain: DescriptorChain,
    sweep: Arc<Sweep>,
    after: After,
}

/// What follows when all commands have ended.
enum After {
    Nothing,
    /// The answer says whether there were any.
    Report,
    ResetUnit(Arc<Nexus>),
    ResetNexus(Vec<Arc<Nexus>>),
    /// The other initiators lost commands.
    TellOthers(Arc<Nexus>),
}

/// The handler of both queues.
pub(crate) struct Control {
    hub: Arc<Hub>,
    listening: Listening,
    pending: Vec<Pending>,
}

impl Control {
    pub(crate) fn new(hub: &Arc<Hub>, wanted: Wanted) -> std::io::Result<Self> {
        Ok(Self {
            hub: Arc::clone(hub),
            listening: Listening::new(&hub.events, wanted)?,
            pending: Vec::new(),
        })
    }

    fn take(&mut self, queue: &mut Queue, chain: DescriptorChain) -> Result<(), Broken> {
        let mut request = [0; size_of::<TaskManagement>()];
        let length = usize::try_from(chain.readable_len())
            .unwrap_or(usize::MAX)
            .min(request.len());
        let bytes = request.get_mut(..length).unwrap_or_default();
        let read = chain.reader().read_exact(bytes);
        let kind = bytes
            .get(..4)
            .and_then(|kind| kind.try_into().ok())
            .map(u32::from_le_bytes);
        let whole =
            |len: usize, answer: usize| length >= len && chain.writable_len() >= wide(answer);
        let fits = match kind {
            Some(control::TMF) => whole(size_of::<TaskManagement>(), 1),
            Some(control::AN_QUERY | control::AN_SUBSCRIBE) => whole(
                size_of::<AsyncNotification>(),
                size_of::<AsyncNotificationResponse>(),
            ),
            Some(_) => whole(4, 1),
            None => false,
        };
        if read.is_err() || !fits {
            queue.complete(chain, 0);
            return Err(Broken::new(CONTROL_QUEUE, "a control request is cut short"));
        }
        match kind {
            Some(control::TMF) => match TaskManagement::read_from_bytes(&request) {
                Ok(order) => self.manage(queue, chain, &order),
                Err(_) => answer(queue, chain, &[response::FAILURE]),
            },
            // No asynchronous notification is offered, so none is subscribed.
            Some(control::AN_QUERY | control::AN_SUBSCRIBE) => {
                let none = AsyncNotificationResponse {
                    response: response::OK,
                    ..Default::default()
                };
                answer(queue, chain, none.as_bytes());
            }
            // Whatever it is, its response is the last byte.
            _ => {
                let gap = usize::try_from(chain.writable_len())
                    .unwrap_or(1)
                    .saturating_sub(1)
                    .min(64);
                let mut bytes = vec![0; gap];
                bytes.push(response::FAILURE);
                answer(queue, chain, &bytes);
            }
        }
        Ok(())
    }

    fn manage(&mut self, queue: &mut Queue, chain: DescriptorChain, order: &TaskManagement) {
        let map = self.hub.map();
        let plan = match address::parse(&order.lun) {
            None => Err(response::BAD_TARGET),
            // The well-known units never have a command at work.
            Some(Address::ReportLuns(None)) => Err(response::OK),
            Some(Address::ReportLuns(Some(target))) => Err(if map.luns(target).is_some() {
                response::OK
            } else {
                response::BAD_TARGET
            }),
            Some(Address::Unit(place)) => find(&map, place).map(|nexus| (place, nexus)),
        };
        let plan = plan.and_then(|(place, nexus)| plan_of(order, &map, place, &nexus));
        let (what, targets, after) = match plan {
            Ok(plan) => plan,
            Err(code) => return answer(queue, chain, &[code]),
        };
        let waiter = Waiter::Mailbox(Arc::clone(self.listening.mailbox()));
        let sweep = Sweep::start(what, targets, waiter);
        self.pending.push(Pending {
            chain,
            sweep,
            after,
        });
        self.conclude(queue);
    }

    /// Answers what has been done.
    fn conclude(&mut self, queue: &mut Queue) {
        let waiting = std::mem::take(&mut self.pending);
        for pending in waiting {
            if pending.sweep.is_done() {
                let code = conclude(&pending);
                answer(queue, pending.chain, &[code]);
            } else {
                self.pending.push(pending);
            }
        }
    }

    /// Sends events for as long as there are buffers.
    fn send(&mut self, queue: &mut Queue) -> Result<(), Broken> {
        while self.hub.events.any() {
            let Some(mut chain) = queue
                .pop()
                .map_err(|error| Broken::new(EVENT_QUEUE, error))?
            else {
                return Ok(());
            };
            let Some(event) = self.hub.events.next() else {
                queue.complete(chain, 0);
                return Ok(());
            };
            let written = chain.writer().write_obj(&event);
            let len = written.as_ref().map_or(0, |()| size_of_val(&event));
            queue.complete(chain, u32::try_from(len).unwrap_or(0));
            written.map_err(|short| Broken::new(EVENT_QUEUE, short))?;
        }
        Ok(())
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn find(map: &Map, place: Place) -> Result<Arc<Nexus>, u8> {
    match (map.get(place), map.luns(place.target)) {
        (Some(nexus), _) => Ok(Arc::clone(nexus)),
        (None, Some(_)) => Err(response::INCORRECT_LUN),
        (None, None) => Err(response::BAD_TARGET),
    }
}

/// What a task management function does, or the response that says why it does nothing.
fn plan_of(
    order: &TaskManagement,
    map: &Map,
    place: Place,
    nexus: &Arc<Nexus>,
) -> Result<(Order, Vec<Target>, After), u8> {
    let task = || vec![nexus.command(order.id.get())];
    let own = || vec![nexus.commands()];
    let all = |paths: &[Arc<Nexus>]| paths.iter().map(|path| path.commands()).collect();
    let everybody = || all(&nexus.unit.paths());
    let abort = Order::End(response::ABORTED);
    let reset = Order::End(response::RESET);
    Ok(match order.subtype.get() {
        control::ABORT_TASK => (abort, task(), After::Nothing),
        control::ABORT_TASK_SET => (abort, own(), After::Nothing),
        control::CLEAR_TASK_SET => (abort, everybody(), After::TellOthers(Arc::clone(nexus))),
        control::LOGICAL_UNIT_RESET => (reset, everybody(), After::ResetUnit(Arc::clone(nexus))),
        control::I_T_NEXUS_RESET => {
            let units: Vec<_> = map
                .iter()
                .filter(|unit| unit.place.target == place.target)
                .cloned()
                .collect();
            (reset, all(&units), After::ResetNexus(units))
        }
        control::QUERY_TASK => (Order::Query, task(), After::Report),
        control::QUERY_TASK_SET => (Order::Query, own(), After::Report),
        // CLEAR ACA: no ACA is ever established, since NACA is not offered.
        _ => return Err(response::FUNCTION_REJECTED),
    })
}

fn conclude(pending: &Pending) -> u8 {
    match &pending.after {
        After::Report if pending.sweep.found() => return response::FUNCTION_SUCCEEDED,
        After::Nothing | After::Report => {}
        After::ResetUnit(nexus) => nexus.unit.reset(),
        After::ResetNexus(units) => {
            for nexus in units {
                // Virtio has no function that resets a target; drivers use this one.
                nexus.unit.reset_by(nexus.port);
                nexus.attend(attention::NEXUS_LOSS);
            }
        }
        After::TellOthers(nexus) => nexus
            .unit
            .tell(attention::COMMANDS_CLEARED, Some(nexus.port)),
    }
    response::OK
}

fn answer(queue: &mut Queue, mut chain: DescriptorChain, bytes: &[u8]) {
    let written = chain.writer().write_all(bytes).map_or(0, |()| bytes.len());
    queue.complete(chain, u32::try_from(written).unwrap_or(0));
}

impl QueueHandler for Control {
    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::edge(self.listening.mailbox().as_fd(), MAIL)]
    }

    fn run(&mut self, queues: &mut QueueSet<'_>, _cause: Cause) -> Result<Outcome, Broken> {
        // Sweeps go to request threads only; the rest asks for a look at what follows anyway.
        drop(self.listening.mailbox().collect());
        if let Some(queue) = queues.get(CONTROL_QUEUE) {
            self.conclude(queue);
            while let Some(chain) = queue
                .pop()
                .map_err(|error| Broken::new(CONTROL_QUEUE, error))?
            {
                self.take(queue, chain)?;
            }
        }
        if let Some(queue) = queues.get(EVENT_QUEUE) {
            self.send(queue)?;
        }
        Ok(Outcome::Idle)
    }

    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        if let Some(queue) = queues.get(CONTROL_QUEUE) {
            for pending in std::mem::take(&mut self.pending) {
                answer(queue, pending.chain, &[response::RESET]);
            }
        }
    }
}
