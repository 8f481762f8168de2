//! Both ends over one memory against a plain model: command sequences, and every framing and every
//! order of completion in small queues. Tier: quick; twenty times as many sequences in soak.
#![expect(
    clippy::cast_possible_truncation,
    reason = "bytes of a buffer's number"
)]

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::device::chain::DescriptorChain;
use crate::device::queue::{ActiveQueue, Interrupt};
use crate::driver::{Bounce, DmaBytes, DmaMap, IndirectPolicy, Kick, Queue, QueueOptions, Refusal};
use crate::mem::PlainRam;
use crate::mem::testbed::Testbed;
use crate::scatterlist::ScatterList;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use crate::tier;

/// A buffer with its number and lists.
struct Token {
    number: u32,
    readable: ScatterList,
    writable: ScatterList,
}

/// A buffer in the model.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    number: u32,
    out: Vec<usize>,
    ins: Vec<usize>,
}

impl Expected {
    fn room(&self) -> usize {
        self.ins.iter().sum()
    }

    fn contents(&self) -> Vec<u8> {
        let len = self.out.iter().sum::<usize>();
        (0..len)
            .map(|at| at.wrapping_add(self.number as usize) as u8)
            .collect()
    }
}

/// A buffer that the device has used, and how many bytes it wrote.
type Answered = (Expected, usize);

/// The expected state of each end, as plain queues.
#[derive(Default)]
struct Model {
    added: VecDeque<Expected>,
    published: VecDeque<Expected>,
    answered: VecDeque<Answered>,
    used: VecDeque<Answered>,
    /// Whether the device requested a notification for the next buffer, and the driver an interrupt
    /// for the next used buffer.
    device_asked: bool,
    driver_asked: bool,
    /// Whether buffers were exposed, or used buffers published, without a decision about a
    /// notification; and whether the other end had not seen them when it requested one.
    exposed: bool,
    exposed_unseen: bool,
    shown_unseen: bool,
}

struct Play<M: DmaMap> {
    bed: Testbed,
    queue: Queue<Token, M>,
    device: ActiveQueue<PlainRam>,
    held: Vec<(DescriptorChain<PlainRam>, Expected)>,
    model: Model,
    next: u32,
    spare: Vec<DmaBytes>,
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        out: Vec<usize>,
        ins: Vec<usize>,
        abort: bool,
        slack: u8,
    },
    Expose,
    Publish,
    DevicePop,
    DeviceComplete {
        which: usize,
        written: usize,
    },
    DeviceShow,
    DevicePublish,
    Pop,
    DeviceArm,
    DriverArm,
    Reset,
}

const LEN: usize = 40;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = || prop::collection::vec(1..=LEN, 0..6);
    let add = (lengths(), lengths(), prop::bool::weighted(0.1), 0u8..3).prop_map(
        |(out, ins, abort, slack)| Step::Add {
            out,
            ins,
            abort,
            slack,
        },
    );
    let complete = (any::<usize>(), any::<usize>())
        .prop_map(|(which, written)| Step::DeviceComplete { which, written });
    let step = prop_oneof![
        8 => add,
        1 => Just(Step::Expose),
        4 => Just(Step::Publish),
        6 => Just(Step::DevicePop),
        6 => complete,
        1 => Just(Step::DeviceShow),
        4 => Just(Step::DevicePublish),
        6 => Just(Step::Pop),
        2 => Just(Step::DeviceArm),
        2 => Just(Step::DriverArm),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..300)
}

impl<M: DmaMap> Play<M> {
    fn new(mut bed: Testbed, features: u64, queue: Queue<Token, M>) -> Self {
        let device = bed.device_end(queue.areas(), features);
        let spare = (0..200).map(|_| bed.take(LEN)).collect();
        Self {
            bed,
            queue,
            device,
            held: Vec::new(),
            // A new ring requests every notification.
            model: Model {
                device_asked: true,
                driver_asked: true,
                ..Model::default()
            },
            next: 0,
            spare,
        }
    }

    fn token(&mut self, buffer: &Expected) -> Token {
        let mut list = |lengths: &[usize]| {
            let pieces = lengths
                .iter()
                .map(|_| self.spare.pop().expect("spare pieces"));
            ScatterList::from_buffers(pieces.collect::<Vec<_>>())
        };
        let mut token = Token {
            number: buffer.number,
            readable: list(&buffer.out),
            writable: list(&buffer.ins),
        };
        let mut contents = buffer.contents().into_iter();
        let mut lengths = buffer.out.iter();
        token.readable.for_each_mut(|piece| {
            let len = *lengths.next().unwrap();
            for byte in &mut piece.bytes_mut()[..len] {
                *byte = contents.next().unwrap();
            }
        });
        token
            .writable
            .for_each_mut(|piece| piece.bytes_mut().fill(0xee));
        token
    }

    fn recycle(&mut self, mut token: Token) {
        for list in [&mut token.readable, &mut token.writable] {
            list.clear(|piece| self.spare.push(piece));
        }
    }

    /// Adds a buffer piecewise, each segment a range of a memory buffer.
    fn add(&mut self, buffer: Expected, abort: bool, slack: u8) -> Result<(), TestCaseError> {
        let token = self.token(&buffer);
        let (out, ins) = (buffer.out.clone(), buffer.ins.clone());
        let count = out.len() + ins.len() + usize::from(slack == 1);
        let free = self.queue.free_slots();
        let opened = self.queue.start_buf(token, count, count + 2);
        let ended = opened.and_then(|mut building| {
            let _ = building.add_all(|token, parts| {
                for (piece, len) in token.readable.iter().zip(&out) {
                    parts.bytes(piece, 0..*len)?;
                }
                Ok(())
            });
            let mut building = building.writable();
            for (at, len) in ins.iter().enumerate() {
                let _ = building.add_bytes(|token| token.writable.iter().nth(at).unwrap(), 0..*len);
            }
            if abort {
                let token = building.abort();
                return Err(crate::driver::Refused {
                    token,
                    why: Refusal::Empty,
                });
            }
            building.end_buf()
        });
        match ended {
            Ok(_) => self.model.added.push_back(buffer),
            Err(refused) => {
                prop_assert_eq!(refused.token.number, buffer.number);
                prop_assert!(
                    abort
                        || count == 0
                        || count > usize::from(free)
                        || count > 5
                        || matches!(refused.why, Refusal::Add(_) | Refusal::Empty),
                    "refused for nothing: {:?}",
                    refused.why
                );
                prop_assert_eq!(self.queue.free_slots(), free, "nothing stays behind");
                self.recycle(refused.token);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Add {
                out,
                ins,
                abort,
                slack,
            } => {
                let number = self.next;
                self.next += 1;
                self.add(Expected { number, out, ins }, abort, slack)?;
            }
            Step::Expose => {
                self.queue.expose();
                let news = !self.model.added.is_empty();
                self.model.exposed |= news;
                self.model.exposed_unseen |= news;
                self.model.published.append(&mut self.model.added);
            }
            Step::Publish => {
                let kick = self.queue.publish();
                let news = !self.model.added.is_empty();
                let exposed = std::mem::take(&mut self.model.exposed);
                let unseen = std::mem::take(&mut self.model.exposed_unseen) || news;
                if unseen && self.model.device_asked {
                    prop_assert_eq!(kick, Kick::Needed, "the device asked");
                }
                let nothing = !exposed && !news;
                prop_assert!(!nothing || kick == Kick::NotNeeded, "nothing is new");
                self.model.device_asked &= !unseen;
                self.model.published.append(&mut self.model.added);
            }
            Step::DevicePop => self.device_pop()?,
            Step::DeviceComplete { which, written } if !self.held.is_empty() => {
                let (mut chain, buffer) = self.held.swap_remove(which % self.held.len());
                let written = written % (buffer.room() + 1);
                let answer = vec![buffer.number as u8; written];
                chain.writer().write_all(&answer).unwrap();
                self.device.complete(chain, u32::try_from(written).unwrap());
                self.model.answered.push_back((buffer, written));
            }
            Step::DeviceComplete { .. } => {}
            Step::DeviceShow => {
                self.device.publish_used();
                self.model.shown_unseen |= !self.model.answered.is_empty();
                self.model.used.append(&mut self.model.answered);
            }
            Step::DevicePublish => {
                let interrupt = self.device.publish();
                let news = !self.model.answered.is_empty();
                let unseen = std::mem::take(&mut self.model.shown_unseen) || news;
                if unseen && self.model.driver_asked {
                    prop_assert_eq!(interrupt, Interrupt::Needed, "the driver asked");
                }
                self.model.driver_asked &= !unseen;
                self.model.used.append(&mut self.model.answered);
            }
            Step::Pop => self.pop()?,
            Step::DeviceArm => {
                let more = self.device.enable_notification();
                if self.device.drained() {
                    prop_assert_eq!(more, !self.model.published.is_empty());
                }
                self.model.device_asked = !more;
                self.model.exposed_unseen &= more;
            }
            Step::DriverArm => {
                let more = self.queue.enable_interrupts();
                prop_assert_eq!(more, !self.model.used.is_empty());
                self.model.driver_asked = !more;
                self.model.shown_unseen &= more;
            }
            Step::Reset => self.reset()?,
        }
        let model = &self.model;
        let live = model.added.len() + model.published.len() + self.held.len();
        let live = live + model.answered.len() + model.used.len();
        prop_assert_eq!(usize::from(self.queue.in_flight()), live);
        Ok(())
    }

    fn device_pop(&mut self) -> Result<(), TestCaseError> {
        let chain = self.device.pop();
        let chain = chain.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let expected = self.model.published.pop_front();
        prop_assert_eq!(chain.is_some(), expected.is_some());
        if let (Some(chain), Some(buffer)) = (chain, expected) {
            let lengths = |segments: &[crate::mem::Segment]| -> Vec<usize> {
                segments.iter().map(|segment| segment.len()).collect()
            };
            prop_assert_eq!(lengths(chain.readable()), buffer.out.clone());
            prop_assert_eq!(lengths(chain.writable()), buffer.ins.clone());
            let mut read = vec![0; buffer.contents().len()];
            chain.reader().read_exact(&mut read).unwrap();
            prop_assert_eq!(read, buffer.contents());
            self.held.push((chain, buffer));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<(), TestCaseError> {
        let done = self.queue.pop();
        let done = done.map_err(|broken| TestCaseError::fail(broken.to_string()))?;
        let expected = self.model.used.pop_front();
        prop_assert_eq!(done.is_some(), expected.is_some());
        let (Some(mut done), Some((buffer, written))) = (done, expected) else {
            return Ok(());
        };
        prop_assert_eq!(done.token.number, buffer.number);
        prop_assert_eq!(usize::try_from(done.written).unwrap(), written);
        let mut left = written;
        let mut lengths = buffer.ins.iter();
        let mut sound = true;
        done.token.writable.for_each_mut(|piece| {
            let here = left.min(*lengths.next().unwrap());
            let (came, rest) = piece.bytes().split_at(here);
            sound &= came.iter().all(|byte| *byte == buffer.number as u8);
            sound &= rest.iter().all(|byte| *byte == 0xee);
            left -= here;
        });
        prop_assert!(sound, "what came is what was written, and nothing else");
        self.recycle(done.token);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), TestCaseError> {
        for (chain, _) in self.held.drain(..) {
            chain.abandon();
        }
        let proof = self.bed.proof();
        let mut tokens = Vec::new();
        prop_assert!(
            self.queue
                .reclaim(&proof, |token| tokens.push(token))
                .is_ok()
        );
        let model = std::mem::take(&mut self.model);
        let live = model.added.len() + model.published.len() + model.answered.len();
        prop_assert!(tokens.len() >= live + model.used.len());
        tokens.into_iter().for_each(|token| self.recycle(token));
        (self.model.device_asked, self.model.driver_asked) = (true, true);
        Ok(())
    }
}

fn play(
    size: u16,
    features: u64,
    policy: IndirectPolicy,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut bed = Testbed::new(1 << 17);
    let options = QueueOptions::new(size, features).tables(8).policy(policy);
    let queue = bed.queue(options);
    run(Play::new(bed, features, queue), features, steps)
}

fn run<M: DmaMap>(mut play: Play<M>, features: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    for step in steps {
        let reset = matches!(step, Step::Reset);
        play.step(step)?;
        if reset {
            play.device = play.bed.device_end(play.queue.areas(), features);
        }
    }
    Ok(())
}

proptest! {
    // Not more in soak, since a case's memory is never freed.
    #![proptest_config(tier::cases(48, 1000))]

    #[test]
    fn both_ends_agree_with_a_plain_model(
        log in 0u32..6,
        event_idx: bool,
        indirect: bool,
        policy in 0usize..4,
        steps in steps(),
    ) {
        use IndirectPolicy::{Always, Auto, Never, Rfc};
        let features = if event_idx { EVENT_IDX } else { 0 };
        let features = features | if indirect { INDIRECT_DESC } else { 0 };
        play(1 << log, features, [Never, Always, Rfc, Auto][policy], steps)?;
    }

    #[test]
    fn both_ends_agree_through_bounce_memory(indirect: bool, steps in steps()) {
        let features = if indirect { EVENT_IDX | INDIRECT_DESC } else { EVENT_IDX };
        let mut bed = Testbed::new(1 << 18);
        let memory = bed.take(256 * 512);
        let bus = bed.address(&memory);
        let hook = Bounce::new(memory, bus, bed.window()).unwrap();
        let options = QueueOptions::new(16, features).tables(8);
        let queue = bed.queue_with(options, hook).unwrap();
        run(Play::new(bed, features, queue), features, steps)?;
    }
}

#[test]
fn every_framing_and_order_of_completion_in_small_queues() {
    for size in [1u16, 2, 4] {
        for features in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
            for policy in [IndirectPolicy::Never, IndirectPolicy::Always] {
                exhaust(size, features, policy);
            }
        }
    }
}

/// All pairs of framings that fit, published together or separately, completed in either order,
/// from every state of the free list that such a pair leaves.
fn exhaust(size: u16, features: u64, policy: IndirectPolicy) {
    let framings: Vec<(usize, usize)> = (0..=usize::from(size))
        .flat_map(|out| (0..=usize::from(size) - out).map(move |ins| (out, ins)))
        .filter(|(out, ins)| out + ins > 0)
        .collect();
    let mut bed = Testbed::new(1 << 18);
    let queue = bed.queue(
        QueueOptions::new(size, features)
            .tables(size)
            .policy(policy),
    );
    let mut play = Play::new(bed, features, queue);
    for first in &framings {
        for second in &framings {
            for order in 0..8 {
                pair(&mut play, [*first, *second], order);
            }
        }
    }
}

fn pair(play: &mut Play<crate::driver::Window>, framings: [(usize, usize); 2], order: u8) {
    let mut walk = |step: Step| play.step(step).unwrap();
    for (out, ins) in framings {
        walk(Step::Add {
            out: vec![3; out],
            ins: vec![5; ins],
            abort: false,
            slack: 0,
        });
        if order & 1 == 0 {
            walk(Step::Publish);
        }
    }
    if order & 1 != 0 {
        walk(Step::Publish);
    }
    walk(Step::DevicePop);
    walk(Step::DevicePop);
    // Which of the two is completed first, and whether each is published separately.
    for _ in 0..2 {
        walk(Step::DeviceComplete {
            which: usize::from(order >> 1 & 1),
            written: usize::from(order) * 3,
        });
        if order & 4 != 0 {
            walk(Step::DevicePublish);
        }
    }
    walk(Step::DevicePublish);
    walk(Step::Pop);
    walk(Step::Pop);
    walk(Step::Pop);
}
