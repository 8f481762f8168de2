//! Both ends over one memory, and used rings written by a hostile device.

mod build;
mod hostile;
mod memory;
mod notify;
mod reset;
mod tables;
mod threads;

use std::rc::Rc;

use super::*;
use crate::driver::{AddError, Bounce, Builder, DmaBuf, MapError, RawSegment, Refusal, Window};
use crate::mem::testbed::{Testbed, elsewhere};
use crate::scatterlist::ScatterList;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;

type List = ScatterList;

/// Returns a list of memory buffers of these lengths.
fn list(bed: &mut Testbed, lengths: &[usize]) -> List {
    List::from_buffers(lengths.iter().map(|len| bed.take(*len)).collect::<Vec<_>>())
}

fn why<T>(refused: Result<Ticket, crate::driver::Refused<T>>) -> Refusal {
    refused.expect_err("refused").why
}

/// Returns address, length, flags and next of descriptor `slot`.
fn desc(bed: &Testbed, areas: QueueAreas, slot: u16) -> (u64, u32, u16, u16) {
    let bytes = bed.read(areas.descriptors + u64::from(slot) * 16, 16);
    (
        u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
        u16::from_le_bytes(bytes[14..].try_into().unwrap()),
    )
}

/// Returns a queue of 4 slots with buffers of 2 + 8 bytes in slots 0 and 1-2.
fn two_in_flight(bed: &mut Testbed) -> Queue<List, Window> {
    two_in_flight_of(bed, QueueOptions::new(4, 0))
}

fn two_in_flight_of(bed: &mut Testbed, options: QueueOptions) -> Queue<List, Window> {
    let mut queue = bed.queue::<List>(options);
    let (small, large) = (list(bed, &[2]), list(bed, &[1, 8]));
    queue.add_inbuf(small, 1, |list| list).unwrap();
    queue.add_buf(large, 1, 1, |list| list).unwrap();
    let _ = queue.publish();
    queue
}
