//! A stand-in for the hypervisor: remembers what is bound and routed, and plays doorbells and lines.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::wiring::{IntxLine, MsiLine, MsiMessage, Wiring, WiringError};

/// See the module.
#[derive(Default)]
pub(crate) struct FakeWiring {
    doorbells: Mutex<Vec<(u64, Arc<EventFd>)>>,
    lines: Lines,
    intx: Arc<Mutex<Option<Intx>>>,
    /// Refuse everything.
    pub(crate) refuses: std::sync::atomic::AtomicBool,
}

type Lines = Arc<Mutex<Vec<Arc<FakeLine>>>>;

struct Intx {
    gsi: u32,
    trigger: Arc<EventFd>,
    resample: Arc<EventFd>,
}

struct FakeLine {
    fd: Arc<EventFd>,
    /// Others that send the message, too.
    more: Mutex<Vec<Arc<EventFd>>>,
    route: Mutex<Option<MsiMessage>>,
}

/// A line that goes away with this.
struct Handle(Arc<FakeLine>, Lines);

impl Drop for Handle {
    fn drop(&mut self) {
        self.1
            .lock()
            .unwrap()
            .retain(|line| !Arc::ptr_eq(line, &self.0));
    }
}

/// A connection that goes away with this.
struct Connection(Arc<Mutex<Option<Intx>>>);

impl IntxLine for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = None;
    }
}

impl MsiLine for Handle {
    fn route(&self, message: MsiMessage) -> Result<(), WiringError> {
        *self.0.route.lock().unwrap() = Some(message);
        Ok(())
    }
    fn attach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError> {
        self.0.more.lock().unwrap().push(Arc::clone(trigger));
        Ok(())
    }
    fn detach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError> {
        let mut more = self.0.more.lock().unwrap();
        let at = more.iter().position(|one| Arc::ptr_eq(one, trigger));
        more.swap_remove(at.expect("was attached"));
        Ok(())
    }
}

impl FakeWiring {
    fn check(&self, operation: &str) -> Result<(), WiringError> {
        if self.refuses.load(std::sync::atomic::Ordering::Relaxed) {
            let why = std::io::Error::from(std::io::ErrorKind::Unsupported);
            return Err(WiringError::new(operation, why));
        }
        Ok(())
    }

    /// Where doorbells are bound, in ascending order.
    pub(crate) fn doorbells(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.doorbells.lock().unwrap().iter().map(|d| d.0).collect();
        all.sort_unstable();
        all
    }

    /// A guest's write to `addr`: whether a doorbell took it.
    pub(crate) fn ring_doorbell(&self, addr: u64) -> bool {
        let doorbells = self.doorbells.lock().unwrap();
        let bound = doorbells.iter().find(|(at, _)| *at == addr);
        bound.inspect(|(_, fd)| fd.write(1).unwrap()).is_some()
    }

    /// Messages sent since the last call, in no order.
    pub(crate) fn messages(&self) -> Vec<MsiMessage> {
        let lines = self.lines.lock().unwrap();
        let sent = |line: &Arc<FakeLine>| {
            let more = line.more.lock().unwrap();
            let all = std::iter::once(&line.fd).chain(more.iter());
            let count: u64 = all.map(|fd| fd.read().unwrap_or(0)).sum();
            let message = *line.route.lock().unwrap();
            std::iter::repeat_n(message, usize::try_from(count).unwrap()).flatten()
        };
        lines.iter().flat_map(sent).collect()
    }

    /// How many message interrupts there are.
    pub(crate) fn message_lines(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// The interrupt line bound, if any.
    pub(crate) fn line(&self) -> Option<u32> {
        self.intx.lock().unwrap().as_ref().map(|intx| intx.gsi)
    }

    /// Whether the line was asserted since the last call.
    pub(crate) fn line_asserted(&self) -> bool {
        let intx = self.intx.lock().unwrap();
        intx.as_ref()
            .is_some_and(|intx| intx.trigger.read().is_ok())
    }

    /// The guest's end of interrupt.
    pub(crate) fn end_of_interrupt(&self) {
        let intx = self.intx.lock().unwrap();
        intx.as_ref().unwrap().resample.write(1).unwrap();
    }
}

impl Wiring for FakeWiring {
    fn bind_notify(&self, addr: u64, fd: &Arc<EventFd>) -> Result<(), WiringError> {
        self.check("bind a doorbell")?;
        let mut doorbells = self.doorbells.lock().unwrap();
        assert!(doorbells.iter().all(|(at, _)| *at != addr), "bound twice");
        doorbells.push((addr, Arc::clone(fd)));
        Ok(())
    }

    fn unbind_notify(&self, addr: u64, _fd: &Arc<EventFd>) -> Result<(), WiringError> {
        self.check("unbind a doorbell")?;
        let mut doorbells = self.doorbells.lock().unwrap();
        let at = doorbells.iter().position(|(at, _)| *at == addr);
        doorbells.remove(at.expect("was bound"));
        Ok(())
    }

    fn msi(&self, trigger: &Arc<EventFd>) -> Result<Box<dyn MsiLine>, WiringError> {
        self.check("make an interrupt")?;
        let line = Arc::new(FakeLine {
            fd: Arc::clone(trigger),
            more: Mutex::default(),
            route: Mutex::new(None),
        });
        self.lines.lock().unwrap().push(Arc::clone(&line));
        Ok(Box::new(Handle(line, Arc::clone(&self.lines))))
    }

    fn intx(
        &self,
        gsi: u32,
        trigger: &Arc<EventFd>,
        resample: &Arc<EventFd>,
    ) -> Result<Box<dyn IntxLine>, WiringError> {
        self.check("bind a line")?;
        let mut intx = self.intx.lock().unwrap();
        assert!(intx.is_none(), "bound twice");
        *intx = Some(Intx {
            gsi,
            trigger: Arc::clone(trigger),
            resample: Arc::clone(resample),
        });
        Ok(Box::new(Connection(Arc::clone(&self.intx))))
    }
}
