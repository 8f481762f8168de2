//! The device's end against a driver that writes any values, with one regression test per bug found
//! elsewhere.

mod activate;
mod complete;
mod cost;
mod index;
mod notify;
mod save;
mod walk;

use super::*;
use crate::device::chain::DescriptorChain;
use crate::device::tests::driver::{PLAIN, TestDriver};
use crate::mem::testing::TestRam;

pub(super) type Queue = ActiveQueue<TestRam>;

pub(super) fn pop(queue: &mut Queue) -> DescriptorChain<TestRam> {
    queue.pop().unwrap().expect("a chain is available")
}

pub(super) fn fault(driver: &mut TestDriver, head: u16) -> ChainFault {
    let mut queue = driver.activate(PLAIN);
    driver.offer(head);
    fault_of(&mut queue, head)
}

pub(super) fn fault_of(queue: &mut Queue, head: u16) -> ChainFault {
    let error = queue.pop().expect_err("the chain is malformed");
    assert!(queue.is_broken());
    assert_eq!(queue.pop().unwrap_err(), ChainError::Broken);
    match error {
        ChainError::Malformed { head: at, fault } => {
            assert_eq!(at, head);
            fault
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn lens(chain: &DescriptorChain<TestRam>) -> (Vec<usize>, Vec<usize>) {
    let of = |segments: &[crate::mem::Segment]| segments.iter().map(|s| s.len()).collect();
    (of(chain.readable()), of(chain.writable()))
}
