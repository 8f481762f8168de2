//! Both ends on a thread each, which sleep whenever the ring permits it.
//!
//! Complements the model checker, which checks the protocols alone, with rings in memory and
//! threads that really sleep.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::*;
use crate::device::queue::{ActiveQueue, Interrupt};
use crate::mem::PlainRam;

const BUFFERS: u32 = 100_000;
/// Far longer than the test takes: a thread that sleeps this long has lost a wake-up.
const FOR_EVER: Duration = Duration::from_secs(120);

/// The event that a notification or an interrupt signals.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self, who: &str) {
        let rung = self.rung.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(rung, FOR_EVER, |rung| !*rung);
        let (mut rung, slept) = wait.unwrap();
        assert!(!slept.timed_out(), "{who} was not told");
        *rung = false;
    }
}

/// Answers each number with its complement, until all have been answered.
fn serve(mut device: ActiveQueue<PlainRam>, kicked: &Bell, interrupt: &Bell) {
    let mut served = 0;
    while served < BUFFERS {
        device.disable_notification();
        while let Some(mut chain) = device.pop().unwrap() {
            let number: [u8; 4] = chain.reader().read_obj().unwrap();
            let answer = number.map(|byte| !byte);
            chain.writer().write_all(&answer).unwrap();
            device.complete(chain, 4);
            served += 1;
        }
        if device.publish() == Interrupt::Needed {
            interrupt.ring();
        }
        if !device.enable_notification() && served < BUFFERS {
            kicked.wait("the device");
        }
    }
}

/// A number, and the memory for its complement.
type Pair = [DmaBytes; 2];

/// Pops all used buffers.
fn reap(queue: &mut Queue<(u32, Pair), Window>, spare: &mut Vec<Pair>) {
    queue.disable_interrupts();
    while let Some(done) = queue.pop().unwrap() {
        let (number, mut pair) = done.token;
        assert_eq!(pair[1].get(0), Some((!number).to_le_bytes()));
        spare.push(pair);
    }
}

#[test]
fn ends_that_sleep_are_woken_and_see_what_was_written_before() {
    for features in [0, BOTH] {
        let mut bed = Testbed::new(1 << 16);
        let mut queue = bed.queue::<(u32, Pair)>(QueueOptions::new(16, features).tables(2));
        let device = bed.device_end(queue.areas(), features);
        let mut spare: Vec<_> = (0..7).map(|_| [bed.take(4), bed.take(4)]).collect();
        let all = spare.len();
        let [kicked, interrupt] = [Bell::default(), Bell::default()];
        std::thread::scope(|scope| {
            scope.spawn(|| serve(device, &kicked, &interrupt));
            for number in 0..BUFFERS {
                while spare.is_empty() {
                    reap(&mut queue, &mut spare);
                    if spare.is_empty() && !queue.enable_interrupts() {
                        interrupt.wait("the driver");
                    }
                }
                let mut pair = spare.pop().unwrap();
                pair[0].put(0, &number.to_le_bytes());
                let mut buffer = queue.start_buf((number, pair), 2, 2).unwrap();
                buffer.add_bytes(|token| &token.1[0], 0..4).unwrap();
                let mut buffer = buffer.writable();
                buffer.add_bytes(|token| &token.1[1], 0..4).unwrap();
                buffer.end_buf().unwrap();
                // Batches of one to seven, the last one whole.
                if number % 11 < 7 || spare.is_empty() || number + 1 == BUFFERS {
                    queue.publish().send(|| kicked.ring());
                }
            }
            while spare.len() < all {
                reap(&mut queue, &mut spare);
                if spare.len() < all && !queue.enable_interrupts() {
                    interrupt.wait("the driver");
                }
            }
        });
    }
}
