//! A thread that works for a device logs within the span in which it was started. In a process of its own: the
//! subscriber is the process's.

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use splitring_devices::disk::{DiskOp, IoFault, Perform, queue_on_thread};
use splitring_devices::eventfd::eventfd;
use splitring_devices::worker::Worker;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Says;

impl Perform for Says {
    fn perform(&mut self, _: DiskOp<'_>) -> Result<u64, IoFault> {
        tracing::info!("a request");
        Ok(0)
    }
    fn release(&mut self) -> Option<Vec<u8>> {
        None
    }
}

#[test]
fn worker_and_blocking_thread_log_within_the_span_they_were_started_in() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_thread_names(true)
        .with_writer(move || writer.clone())
        .init();
    let span = tracing::info_span!("machine", name = "mine");
    let (worker, mut queue) = span.in_scope(|| {
        let worker = Worker::spawn("worker0", None, Arc::new(|_| ())).unwrap();
        (worker, queue_on_thread(Says, 1).unwrap())
    });

    let (done, waits) = channel();
    let fd = std::sync::Arc::new(eventfd().unwrap());
    let action = move || {
        tracing::info!("a signal");
        done.send(()).unwrap();
    };
    let watch = worker.watch("a watch", std::sync::Arc::clone(&fd), Box::new(action));
    fd.write(1).unwrap();
    waits.recv().unwrap();
    worker.stop(watch.unwrap()).unwrap();

    queue.submit(1, DiskOp::Flush).unwrap();
    queue.commit();
    let mut completed = Vec::new();
    while completed.is_empty() {
        queue.completions(&mut completed);
    }

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("a signal") || line.contains("a request"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, thread) in lines.iter().zip(["worker0", "disk-blocking"]) {
        assert!(line.contains("machine{name=\"mine\"}"), "{line}");
        assert!(line.contains(thread), "{line}");
    }
}
