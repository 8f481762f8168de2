//! The rings that a queue writes, compared byte for byte with those of Linux 3.8, before the RFC:
//! its `virtqueue_add_buf` and `detach_buf`, rewritten over plain vectors without this crate.
#![expect(
    clippy::cast_possible_truncation,
    reason = "queues of at most 16 slots"
)]

use proptest::prelude::*;

use crate::driver::{IndirectPolicy, Queue, QueueOptions, Refusal, Window};
use crate::mem::testbed::{Testbed, raw};
use crate::scatterlist::ScatterList;
use crate::spec::feature::INDIRECT_DESC;
use crate::tier;

type List = ScatterList<crate::driver::RawSegment>;

/// A descriptor in Linux's layout.
#[derive(Clone, Copy, Default)]
struct VringDesc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl VringDesc {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// The state of Linux 3.8: its free list is threaded through the shared table.
struct Linux38 {
    desc: Vec<VringDesc>,
    avail: Vec<u16>,
    avail_idx: u16,
    free_head: u16,
    num_free: usize,
    indirect: bool,
    /// The result of the allocation of an indirect table, by head: here one table per slot at a
    /// fixed distance, and no memory for longer tables.
    tables_at: u64,
    stride: u64,
    table_len: usize,
    tables: Vec<Vec<VringDesc>>,
}

impl Linux38 {
    fn new(size: usize, indirect: bool, tables_at: u64, table_len: usize) -> Self {
        let mut desc = vec![VringDesc::default(); size];
        for (i, desc) in desc.iter_mut().enumerate().take(size - 1) {
            desc.next = i as u16 + 1;
        }
        Self {
            desc,
            avail: vec![0; size],
            avail_idx: 0,
            free_head: 0,
            num_free: size,
            indirect,
            tables_at,
            // An odd number of cache lines, each of 64 bytes.
            stride: (table_len as u64 * 16).div_ceil(64) / 2 * 128 + 64,
            table_len,
            tables: vec![Vec::new(); size],
        }
    }

    fn add_indirect(&mut self, sg: &[(u64, u32)], out: usize) -> Option<u16> {
        if sg.len() > self.table_len {
            return None;
        }
        let mut table = Vec::new();
        for (i, (addr, len)) in sg.iter().enumerate() {
            table.push(VringDesc {
                addr: *addr,
                len: *len,
                flags: if i < out { 1 } else { 1 | 2 },
                next: i as u16 + 1,
            });
        }
        let last = table.last_mut().unwrap();
        last.flags &= !1;
        last.next = 0;
        self.num_free -= 1;
        let head = self.free_head;
        let entry = &mut self.desc[head as usize];
        entry.flags = 4;
        entry.addr = self.tables_at + u64::from(head) * self.stride;
        entry.len = sg.len() as u32 * 16;
        self.free_head = entry.next;
        self.tables[head as usize] = table;
        Some(head)
    }

    fn add_buf(&mut self, sg: &[(u64, u32)], out: usize) -> Result<u16, ()> {
        let mut head = None;
        if self.indirect && sg.len() > 1 && self.num_free > 0 {
            head = self.add_indirect(sg, out);
        }
        let head = match head {
            Some(head) => head,
            None => {
                if self.num_free < sg.len() {
                    return Err(());
                }
                self.num_free -= sg.len();
                let head = self.free_head;
                let mut i = head;
                let mut prev = head;
                for (n, (addr, len)) in sg.iter().enumerate() {
                    let entry = &mut self.desc[i as usize];
                    entry.flags = if n < out { 1 } else { 1 | 2 };
                    entry.addr = *addr;
                    entry.len = *len;
                    prev = i;
                    i = entry.next;
                }
                self.desc[prev as usize].flags &= !1;
                self.free_head = i;
                head
            }
        };
        let at = self.avail_idx as usize & (self.desc.len() - 1);
        self.avail[at] = head;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(head)
    }

    fn detach_buf(&mut self, head: u16) {
        let mut i = head;
        while self.desc[i as usize].flags & 1 != 0 {
            i = self.desc[i as usize].next;
            self.num_free += 1;
        }
        self.desc[i as usize].next = self.free_head;
        self.free_head = head;
        self.num_free += 1;
        self.tables[head as usize].clear();
    }

    fn check(&self, bed: &Testbed, queue: &Queue<Token, Window>) -> Result<(), TestCaseError> {
        let areas = queue.areas();
        let table: Vec<u8> = self.desc.iter().flat_map(|desc| desc.bytes()).collect();
        prop_assert_eq!(bed.read(areas.descriptors, table.len()), table);
        let mut avail = vec![0, 0];
        avail.extend(self.avail_idx.to_le_bytes());
        avail.extend(self.avail.iter().flat_map(|head| head.to_le_bytes()));
        prop_assert_eq!(bed.read(areas.driver, avail.len()), avail);
        for (head, table) in self.tables.iter().enumerate() {
            let at = self.tables_at + head as u64 * self.stride;
            let table: Vec<u8> = table.iter().flat_map(|desc| desc.bytes()).collect();
            if !table.is_empty() {
                prop_assert_eq!(bed.read(at, table.len()), table);
            }
        }
        prop_assert_eq!(usize::from(queue.free_slots()), self.num_free);
        Ok(())
    }
}

/// The segments of one buffer as every kind of list that a form may need.
struct Token {
    whole: List,
    halves: [List; 2],
    pieces: Vec<List>,
    head: u16,
}

fn list(segments: &[(u64, u32)]) -> List {
    List::from_buffers(segments.iter().map(|(addr, len)| raw(*addr, *len)))
}

impl Token {
    fn new(segments: &[(u64, u32)], out: usize, head: u16) -> Self {
        // The complete list is two lists, chained in the middle.
        let (front, back) = segments.split_at(segments.len() / 2);
        let mut whole = List::new(front.len() + 1);
        for (index, (addr, len)) in front.iter().enumerate() {
            whole.set(index, raw(*addr, *len)).unwrap();
        }
        whole.chain(list(back)).unwrap();
        let (outs, ins) = segments.split_at(out);
        Self {
            whole,
            halves: [list(outs), list(ins)],
            pieces: segments.iter().map(|segment| list(&[*segment])).collect(),
            head,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Adds a buffer with these numbers of readable and writable segments, by one of the forms.
    Add {
        out: usize,
        ins: usize,
        form: u8,
        seed: u32,
    },
    /// The device uses one of the buffers in flight.
    Use(prop::sample::Index),
}

fn steps(size: usize) -> impl Strategy<Value = Vec<Step>> {
    let add = (0..=size, 0..=size, 0u8..4, any::<u32>());
    let add = add.prop_map(move |(out, ins, form, seed)| {
        let ins = ins.min(size - out).max(usize::from(out == 0));
        Step::Add {
            out,
            ins,
            form,
            seed,
        }
    });
    let used = any::<prop::sample::Index>().prop_map(Step::Use);
    prop::collection::vec(prop_oneof![3 => add, 2 => used], 1..200)
}

/// Adds a buffer by one of the forms, all of which must write the same. Returns false if the queue
/// is full.
fn add(queue: &mut Queue<Token, Window>, token: Token, out: usize, ins: usize, form: u8) -> bool {
    let added = match form {
        0 => queue.add_buf(token, out, ins, |token| &token.whole),
        1 => queue.add_sgs(token, 1, |token| token.halves.each_ref()),
        2 if ins == 0 => queue.add_outbuf(token, out, |token| &token.whole),
        2 if out == 0 => queue.add_inbuf(token, ins, |token| &token.whole),
        _ => queue
            .start_buf(token, out + ins, out + ins)
            .and_then(|mut buffer| {
                for n in 0..out {
                    buffer.add_sg(|token| &token.pieces[n], 1).unwrap();
                }
                let mut buffer = buffer.writable();
                for n in out..out + ins {
                    buffer.add_sg(|token| &token.pieces[n], 9).unwrap();
                }
                buffer.end_buf()
            }),
    };
    match added {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.why, Refusal::Full);
            false
        }
    }
}

/// Runs the steps on both and compares everything that they wrote after each.
fn compare(size: u16, table: u16, indirect: bool, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let features = if indirect { INDIRECT_DESC } else { 0 };
    let options = QueueOptions::new(size, features)
        .tables(table)
        .policy(IndirectPolicy::Rfc);
    let mut bed = Testbed::new(1 << 17);
    let mut queue = bed.queue::<Token>(options);
    let areas = queue.areas();
    let ring = QueueOptions::new(size, 0).memory_len() as u64;
    let tables_at = areas.descriptors + ring;
    let mut linux = Linux38::new(size.into(), indirect, tables_at, table.into());
    let mut in_flight: Vec<u16> = Vec::new();
    let mut used_idx = 0u16;
    for step in steps {
        match step {
            Step::Add {
                out,
                ins,
                form,
                seed,
            } => {
                let segment = |n: usize| (u64::from(seed) << 8 | n as u64, seed % 4096 + 1);
                let segments: Vec<_> = (0..out + ins).map(segment).collect();
                let head = linux.free_head;
                let token = Token::new(&segments, out, head);
                let added = linux.add_buf(&segments, out);
                prop_assert_eq!(add(&mut queue, token, out, ins, form), added.is_ok());
                if let Ok(head) = added {
                    in_flight.push(head);
                }
                queue.expose();
            }
            Step::Use(_) if in_flight.is_empty() => {}
            Step::Use(index) => {
                let head = in_flight.swap_remove(index.index(in_flight.len()));
                used_idx = used_idx.wrapping_add(1);
                bed.forge_used(areas, used_idx, head.into(), 0);
                prop_assert_eq!(queue.pop().unwrap().unwrap().token.head, head);
                linux.detach_buf(head);
            }
        }
        linux.check(&bed, &queue)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(tier::cases(64, 1000))]

    #[test]
    fn direct_rings_are_those_of_linux_3_8_byte_for_byte(steps in steps(16)) {
        compare(16, 0, false, steps)?;
    }

    #[test]
    fn indirect_rings_are_those_of_linux_3_8_byte_for_byte(steps in steps(8)) {
        compare(8, 8, true, steps)?;
    }

    #[test]
    fn without_memory_for_a_table_rings_are_direct_as_in_linux_3_8(steps in steps(8)) {
        compare(8, 3, true, steps)?;
    }

    #[test]
    fn rings_of_one_slot_are_those_of_linux_3_8_byte_for_byte(steps in steps(1)) {
        compare(1, 1, true, steps)?;
    }
}
