//! The device's end against plain models: a walker of descriptor tables over vectors, tested on
//! every small table and on random large ones, and a queue of heads, tested with every short
//! sequence of actions and with random long ones.
//!
//! Tiers: quick; with `SPLITRING_SOAK` set the sequences are longer and there are many more random
//! ones.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::driver::{DATA, EVENT, IN_ORDER, INDIRECT, NEXT, PLAIN, RAM, TestDriver, WRITE, desc};
use crate::device::chain::DescriptorChain;
use crate::device::queue::{ActiveQueue, ChainError, Interrupt, QueueConfig, RingFeatures};
use crate::mem::testing::TestRam;
use crate::mem::{Access, GuestRam, Segment};
use crate::spec::ring::Descriptor;
use crate::tier;

/// Guest addresses and lengths of the readable, then of the writable buffers.
type Buffers = (Vec<(u64, u32)>, Vec<(u64, u32)>);

/// A plain implementation of a chain after section 2.7.5; `None` is malformed.
fn plain_walk(driver: &TestDriver, head: u16, indirect: bool) -> Option<Buffers> {
    let table: Vec<Descriptor> = (0..u64::from(driver.size))
        .map(|n| driver.ram.get(driver.desc + 16 * n))
        .collect();
    let mut links = links(&table, head, usize::from(driver.size))?;
    if links.last()?.flags.get() & INDIRECT != 0 {
        let last = links.pop()?;
        let (addr, len) = (last.addr.get(), last.len.get());
        let whole = len > 0 && len % 16 == 0 && last.flags.get() & NEXT == 0;
        if !indirect || !whole || driver.ram.region(addr, Access::Read).is_none() {
            return None;
        }
        let table: Vec<Descriptor> = (0..u64::from(len / 16))
            .map_while(|n| {
                let at = addr + 16 * n;
                driver.ram.region(at, Access::Read)?.segment(at, 16)?;
                Some(driver.ram.get(at))
            })
            .collect();
        links.extend(self::links(&table, 0, usize::from(driver.size))?);
    }
    let ok = links.len() <= usize::from(driver.size)
        && links.iter().all(|it| it.flags.get() & INDIRECT == 0)
        && links.is_sorted_by_key(|it| it.flags.get() & WRITE);
    if !ok {
        return None;
    }
    let mut out = Buffers::default();
    for it in links {
        let buffer = (it.addr.get(), it.len.get());
        let (access, list) = match it.flags.get() & WRITE {
            0 => (Access::Read, &mut out.0),
            _ => (Access::Write, &mut out.1),
        };
        if buffer.1 > 0 {
            expected(&driver.ram, buffer, access)?;
            list.push(buffer);
        }
    }
    Some(out)
}

/// Returns the descriptors from `head` on, at most one more than `limit`, the last one possibly
/// indirect.
fn links(table: &[Descriptor], head: u16, limit: usize) -> Option<Vec<Descriptor>> {
    let mut out = vec![*table.get(usize::from(head))?];
    loop {
        let last = out.last()?;
        let ends = last.flags.get() & (INDIRECT | NEXT) != NEXT;
        if ends || out.len() > limit {
            return Some(out);
        }
        out.push(*table.get(usize::from(last.next.get()))?);
    }
}

/// Returns the expected segment of a buffer in one region.
fn expected(ram: &TestRam, (addr, len): (u64, u32), access: Access) -> Option<Segment> {
    ram.region(addr, access)?.segment(addr, len as usize)
}

/// Pops one chain and compares it with the result of the plain walker.
fn compare(driver: &mut TestDriver, features: RingFeatures, head: u16) {
    let mut queue = driver.activate_at(0, features);
    driver.offer(head);
    let plain = plain_walk(driver, head, features.indirect);
    match (queue.pop(), plain) {
        (Ok(Some(chain)), Some((readable, writable))) => {
            let segments = |list: Vec<_>, access| -> Vec<_> {
                list.into_iter()
                    .map(|b| expected(&driver.ram, b, access).unwrap())
                    .collect()
            };
            assert_eq!(chain.readable(), segments(readable, Access::Read));
            assert_eq!(chain.writable(), segments(writable, Access::Write));
            queue.complete(chain, 0);
        }
        (Err(ChainError::Malformed { head: at, .. }), None) => assert_eq!(at, head),
        (popped, plain) => panic!("popped {popped:?}, but plainly it is {plain:?}"),
    }
}

/// Returns every descriptor that differs in more than the address: flags, and links where they
/// matter.
fn alphabet(size: u16, addr: u64, len: u32) -> Vec<Descriptor> {
    let flags = [0, WRITE, INDIRECT, INDIRECT | WRITE];
    let mut all: Vec<_> = flags
        .iter()
        .map(|&flags| desc(addr, len, flags, 0))
        .collect();
    for next in 0..=size {
        all.extend(
            flags
                .iter()
                .map(|&flags| desc(addr, len, flags | NEXT, next)),
        );
    }
    all
}

/// Calls `each` with every word of `len` letters.
fn words<T: Copy>(alphabet: &[T], len: usize, each: &mut impl FnMut(&[T])) {
    let mut places = vec![0; len];
    loop {
        let word: Vec<T> = places.iter().map(|place| alphabet[*place]).collect();
        each(&word);
        let Some(at) = places.iter().position(|place| *place + 1 < alphabet.len()) else {
            return;
        };
        places[at] += 1;
        places[..at].fill(0);
    }
}

#[test]
fn every_direct_table_of_a_small_queue_is_walked_as_plainly() {
    for size in [1, 2, 4] {
        let ram = TestRam::with_regions(&[(RAM, 4096, true), (DATA, 4096, true)]);
        let mut driver = TestDriver::on(ram, size);
        // A table of one readable descriptor, which is also the buffer of all others.
        driver.table(DATA, &[desc(DATA, 16, 0, 0)]);
        let alphabet = alphabet(size, DATA, 16);
        words(&alphabet, usize::from(size), &mut |table| {
            driver.table(driver.desc, table);
            // Tables are closed under renaming: starting at both ends is enough.
            compare(&mut driver, PLAIN, 0);
            compare(&mut driver, PLAIN, size - 1);
        });
        compare(&mut driver, PLAIN, size);
    }
}

#[test]
fn every_indirect_table_of_up_to_three_entries_is_walked_as_plainly() {
    for size in [1, 2, 4] {
        let ram = TestRam::with_regions(&[(RAM, 4096, true), (DATA, 4096, true)]);
        let mut driver = TestDriver::on(ram, size);
        for entries in 1..=3u16 {
            let bytes = 16 * u32::from(entries);
            driver.set_desc(0, desc(DATA, bytes, INDIRECT, 0));
            let alphabet = alphabet(entries, DATA + 64, 16);
            words(&alphabet, usize::from(entries), &mut |table| {
                driver.table(DATA, table);
                compare(&mut driver, PLAIN, 0);
                if size > 1 {
                    // The same table behind a direct descriptor, readable or writable.
                    for flags in [NEXT, NEXT | WRITE] {
                        driver.set_desc(1, desc(DATA + 64, 8, flags, 0));
                        compare(&mut driver, PLAIN, 1);
                    }
                }
            });
        }
    }
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        8 => (0u64..64).prop_map(|n| DATA + 16 * n),
        2 => (0u64..32).prop_map(|n| DATA + 4096 - 16 * n),
        1 => any::<u64>(),
        1 => (0u64..20).prop_map(|n| u64::MAX - n),
        1 => (0u64..20).prop_map(|n| RAM + n),
    ];
    let len = prop_oneof![
        4 => (0u32..8).prop_map(|n| 16 * n),
        1 => 0u32..100,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        6 => prop::sample::select(vec![NEXT, NEXT | WRITE, NEXT, 0, WRITE]),
        1 => prop::sample::select(vec![INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT]),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0u16..16, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| desc(addr, len, flags, next))
}

proptest! {
    #![proptest_config(tier::cases(1000, 100_000))]

    #[test]
    fn random_tables_are_walked_as_plainly(
        table in prop::collection::vec(any_descriptor(), 16),
        indirect in prop::collection::vec(any_descriptor(), 64),
        head in 0u16..18,
        negotiated in any::<bool>(),
    ) {
        let ram = TestRam::with_regions(&[(RAM, 4096, true), (DATA, 4096, true)]);
        let mut driver = TestDriver::on(ram, 16);
        driver.table(driver.desc, &table);
        driver.table(DATA, &indirect);
        let features = RingFeatures { indirect: negotiated, ..PLAIN };
        compare(&mut driver, features, head);
    }
}

/// An action on a queue.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// The driver makes a free head available, if it has one.
    Offer,
    Pop,
    /// The device completes the n-th request that it holds, modulo their number.
    Complete(usize),
    /// The device publishes without a decision about an interrupt.
    Show,
    /// The device publishes while the driver requests an interrupt this many entries ahead.
    Publish(u16),
    Notify(bool),
    Grant(u16),
    /// The queue is saved and restored; requests that the device holds are abandoned.
    Restore,
}

/// A queue and its plain model.
struct Pair {
    driver: TestDriver,
    features: RingFeatures,
    queue: ActiveQueue<TestRam>,
    held: Vec<DescriptorChain<TestRam>>,
    free: VecDeque<u16>,
    offered: VecDeque<u16>,
    /// Heads popped and not completed, in the order of popping.
    popped: Vec<u16>,
    /// With IN_ORDER: popped heads in ring order, with the length once they are completed.
    line: VecDeque<(u16, Option<u32>)>,
    /// Heads that a restored queue must return first.
    again: VecDeque<u16>,
    /// Entries on the used ring, published or not, that the driver has not taken.
    used: VecDeque<(u16, u32)>,
    idx: u16,
    /// The used index of the last decision about an interrupt, and whether one is due after a
    /// restore.
    decided: u16,
    due: bool,
    grant: Option<u16>,
}

impl Pair {
    fn new(size: u16, start: u16, features: RingFeatures) -> Self {
        let ram = TestRam::with_regions(&[(RAM, 2048, true), (DATA, 4096, true)]);
        let mut driver = TestDriver::on(ram, size);
        for head in 0..size {
            driver.chain(head, &[(DATA + 64 * u64::from(head), 32, WRITE)]);
        }
        let queue = driver.activate_at(start, features);
        Self {
            driver,
            features,
            queue,
            held: Vec::new(),
            free: (0..size).collect(),
            offered: VecDeque::new(),
            popped: Vec::new(),
            line: VecDeque::new(),
            again: VecDeque::new(),
            used: VecDeque::new(),
            idx: start,
            decided: start,
            due: false,
            grant: None,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Offer => {
                if let Some(head) = self.free.pop_front() {
                    self.driver.offer(head);
                    self.offered.push_back(head);
                }
            }
            Action::Pop => self.pop(),
            Action::Complete(n) => self.complete(n),
            Action::Show => {
                self.queue.publish_used();
                self.take();
            }
            Action::Publish(ahead) => self.publish(ahead),
            Action::Notify(true) => {
                let more = self.queue.enable_notification();
                assert_eq!(more, !self.offered.is_empty());
            }
            Action::Notify(false) => self.queue.disable_notification(),
            Action::Grant(chains) => {
                self.queue.grant(chains);
                self.grant = Some(chains);
            }
            Action::Restore => self.restore(),
        }
        let waiting = self.popped.len() + self.again.len();
        let done = self.line.iter().filter(|(_, len)| len.is_some()).count();
        assert_eq!(usize::from(self.queue.in_flight()), waiting + done);
        assert!(!self.queue.is_broken());
    }

    fn pop(&mut self) {
        let next = match self.grant {
            Some(0) => None,
            _ => self.again.pop_front().or_else(|| {
                let head = self.offered.pop_front()?;
                self.line.push_back((head, None));
                Some(head)
            }),
        };
        let chain = self.queue.pop().unwrap();
        assert_eq!(chain.as_ref().map(DescriptorChain::head), next);
        if chain.is_none() {
            assert_eq!(self.queue.spent(), self.grant == Some(0));
            assert_eq!(self.queue.drained(), self.grant != Some(0));
        } else if let Some(left) = &mut self.grant {
            *left -= 1;
        }
        self.popped.extend(next);
        self.held.extend(chain);
    }

    fn complete(&mut self, n: usize) {
        if self.held.is_empty() {
            return;
        }
        let n = n % self.held.len();
        let (chain, head) = (self.held.remove(n), self.popped.remove(n));
        let len = u32::from(head) + 1;
        self.queue.complete(chain, len);
        let place = self
            .line
            .iter()
            .position(|it| it.0 == head && it.1.is_none())
            .unwrap();
        self.line[place].1 = Some(len);
        if !self.features.in_order {
            // Without IN_ORDER it is used at once.
            self.used.push_back((head, len));
            self.line.remove(place);
        }
        while let Some((head, Some(len))) = self.line.front().copied() {
            self.used.push_back((head, len));
            self.line.pop_front();
        }
    }

    fn publish(&mut self, ahead: u16) {
        let new = self
            .idx
            .wrapping_add(u16::try_from(self.used.len()).unwrap());
        let event = self.decided.wrapping_add(ahead);
        if self.features.event_idx {
            self.driver.set_used_event(event);
        } else {
            self.driver.set_avail_flags(ahead & 1);
        }
        let batch = new.wrapping_sub(self.decided);
        let wanted = batch > 0
            && if self.features.event_idx {
                ahead < batch
            } else {
                ahead & 1 == 0
            };
        let due = std::mem::take(&mut self.due);
        let told = self.queue.publish() == Interrupt::Needed;
        assert_eq!(told, wanted || due);
        self.decided = new;
        self.take();
    }

    /// The driver takes all published entries.
    fn take(&mut self) {
        while let Some((head, len)) = self.used.pop_front() {
            assert_eq!(self.driver.used_entry(self.idx), (u32::from(head), len));
            self.idx = self.idx.wrapping_add(1);
            self.free.push_back(head);
        }
        assert_eq!(self.driver.used_idx(), self.idx);
    }

    fn restore(&mut self) {
        let state = self.queue.save();
        self.held.drain(..).for_each(DescriptorChain::abandon);
        let config = QueueConfig::restore(self.driver.size, state).unwrap();
        self.queue = config
            .activate(self.driver.ram.clone(), self.features)
            .unwrap();
        self.popped.clear();
        self.grant = None;
        // Published entries are no longer decided about: the next publication covers them.
        self.due |= self.idx != self.decided;
        self.decided = self.idx;
        let waiting = self.line.iter().filter(|(_, len)| len.is_none());
        self.again = waiting.map(|(head, _)| *head).collect();
    }
}

#[test]
fn every_short_sequence_of_actions_on_a_small_queue_goes_as_plainly() {
    let actions = [
        Action::Offer,
        Action::Pop,
        Action::Complete(0),
        Action::Complete(1),
        Action::Show,
        Action::Publish(0),
        Action::Restore,
    ];
    let longer = if tier::soak() { 3 } else { 0 };
    for (size, len) in [(1, 4), (2, 5), (4, 5)] {
        let len = len + longer;
        for features in [EVENT, IN_ORDER] {
            words(&actions, len, &mut |word| {
                let mut pair = Pair::new(size, 65534, features);
                for _ in 0..size / 2 {
                    pair.act(Action::Offer);
                }
                word.iter().for_each(|action| pair.act(*action));
                pair.held.drain(..).for_each(DescriptorChain::abandon);
            });
        }
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => Just(Action::Offer),
        6 => Just(Action::Pop),
        6 => any::<usize>().prop_map(Action::Complete),
        2 => (0u16..10).prop_map(Action::Publish),
        1 => Just(Action::Show),
        1 => any::<bool>().prop_map(Action::Notify),
        1 => (0u16..10).prop_map(Action::Grant),
        1 => Just(Action::Restore),
    ]
}

proptest! {
    #![proptest_config(tier::cases(100, 10_000))]

    #[test]
    fn random_long_sequences_of_actions_go_as_plainly(
        actions in prop::collection::vec(any_action(), 1..400),
        size in prop::sample::select(vec![1u16, 2, 8, 32]),
        start in prop_oneof![Just(0u16), 65500u16..=65535],
        features in prop::sample::select(vec![PLAIN, EVENT, IN_ORDER]),
    ) {
        let mut pair = Pair::new(size, start, features);
        actions.into_iter().for_each(|action| pair.act(action));
        pair.held.drain(..).for_each(DescriptorChain::abandon);
    }
}
